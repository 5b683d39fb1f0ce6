# SPDX-License-Identifier: Apache-2.0
#
# Which GPUs the kernels are compiled for. Taken, in order, from
#   -DCMAKE_CUDA_ARCHITECTURES   CMake's words: 80;86-real;90-virtual;native
#   TORCH_CUDA_ARCH_LIST         PyTorch's words: "8.0;8.6+PTX", "Ampere", spaces or semicolons
#   CMAKE_CUDA_ARCHITECTURES, CUDAARCHS   the same words as the first, from the environment
# and 80-real;86-real;80-virtual where nothing is said: machine code for the two, and PTX that newer
# GPUs compile when the library is first used.

set(QUTLASS_DEFAULT_CUDA_ARCHITECTURES 80-real 86-real 80-virtual)

# PyTorch's words to CMake's.
function(qutlass_parse_torch_arch_list text out)
  string(REGEX REPLACE "[ ,]+" ";" words "${text}")
  set(result "")
  foreach(word IN LISTS words)
    string(TOLOWER "${word}" lower)
    if(word STREQUAL "")
      continue()
    elseif(lower MATCHES "^([0-9]+)\\.([0-9])([af]?)(\\+ptx)?$")
      set(number "${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3}")
      list(APPEND result "${number}-real")
      if(CMAKE_MATCH_4)
        list(APPEND result "${number}-virtual")
      endif()
    elseif(lower STREQUAL "ampere")
      list(APPEND result 80-real 86-real 86-virtual)
    elseif(lower STREQUAL "ada")
      list(APPEND result 89-real 89-virtual)
    elseif(lower STREQUAL "hopper")
      list(APPEND result 90-real 90-virtual)
    else()
      message(FATAL_ERROR "qutlass: TORCH_CUDA_ARCH_LIST holds \"${word}\"; it takes entries like "
        "8.0, 8.6 or 8.6+PTX, or Ampere, Ada, Hopper, between spaces or semicolons.")
    endif()
  endforeach()
  set(${out} "${result}" PARENT_SCOPE)
endfunction()

# The GPUs of this machine, as CMake's words.
function(qutlass_native_architectures out)
  execute_process(
    COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE answer ERROR_QUIET RESULT_VARIABLE code)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" numbers "${answer}")
  if(NOT code EQUAL 0 OR NOT numbers)
    message(FATAL_ERROR "qutlass: the architecture \"native\" was asked for, but nvidia-smi shows no "
      "GPU on this machine. Name the architectures, e.g. TORCH_CUDA_ARCH_LIST=\"8.0;8.6\".")
  endif()
  list(REMOVE_DUPLICATES numbers)
  list(TRANSFORM numbers REPLACE "\\." "")
  list(TRANSFORM numbers APPEND "-real")
  set(${out} "${numbers}" PARENT_SCOPE)
endfunction()

# Sets <out> to a list of "NN-real" and "NN-virtual".
function(qutlass_cuda_architectures out)
  if(CMAKE_CUDA_ARCHITECTURES)
    set(words "${CMAKE_CUDA_ARCHITECTURES}")
    set(origin "CMAKE_CUDA_ARCHITECTURES")
  elseif(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
    qutlass_parse_torch_arch_list("$ENV{TORCH_CUDA_ARCH_LIST}" words)
    set(origin "TORCH_CUDA_ARCH_LIST")
  elseif(NOT "$ENV{CMAKE_CUDA_ARCHITECTURES}" STREQUAL "")
    string(REPLACE " " ";" words "$ENV{CMAKE_CUDA_ARCHITECTURES}")
    set(origin "CMAKE_CUDA_ARCHITECTURES")
  elseif(NOT "$ENV{CUDAARCHS}" STREQUAL "")
    set(words "$ENV{CUDAARCHS}")
    set(origin "CUDAARCHS")
  else()
    set(words ${QUTLASS_DEFAULT_CUDA_ARCHITECTURES})
    set(origin "the default")
  endif()

  set(result "")
  foreach(word IN LISTS words)
    if(word STREQUAL "native")
      qutlass_native_architectures(native)
      list(APPEND result ${native})
    elseif(word MATCHES "^([0-9]+[af]?)-(real|virtual)$")
      list(APPEND result "${word}")
    elseif(word MATCHES "^[0-9]+[af]?$")
      list(APPEND result "${word}-real" "${word}-virtual")
    else()
      message(FATAL_ERROR "qutlass: the architecture \"${word}\" (from ${origin}) is not understood; "
        "name numbers like 80, 86-real or 90-virtual, or native.")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES result)
  if(NOT result)
    message(FATAL_ERROR "qutlass: ${origin} names no architecture; leave it unset for 8.0 and 8.6.")
  endif()
  foreach(word IN LISTS result)
    string(REGEX MATCH "^[0-9]+" number "${word}")
    if(number LESS 80)
      message(FATAL_ERROR "qutlass: architecture ${number} (from ${origin}) is below 8.0. The kernels "
        "need what Ampere brought (asynchronous copies, INT4 and bfloat16 tensor instructions): "
        "name 8.0 or later, e.g. TORCH_CUDA_ARCH_LIST=\"8.0;8.6\".")
    endif()
  endforeach()
  set(${out} "${result}" PARENT_SCOPE)
endfunction()

# nvcc's --generate-code flags. All machine code of the 8.x family comes out of one pass of the
# front end at compute_80: no kernel asks for more, and one pass for 80;86 takes 21 s where two take
# 35 s (a CUTLASS int8 kernel of 128x128x64 on one core, nvcc 13.0).
function(qutlass_gencode_flags architectures out)
  set(bases "")
  foreach(word IN LISTS architectures)
    string(REGEX MATCH "^[0-9]+[af]?" number "${word}")
    if(word MATCHES "-real$")
      set(base "${number}")
      if(number MATCHES "^8[0-9]$")
        set(base 80)
      endif()
      list(APPEND code_${base} "sm_${number}")
    else()
      set(base "${number}")
      list(APPEND code_${base} "compute_${number}")
    endif()
    list(APPEND bases "${base}")
  endforeach()
  list(REMOVE_DUPLICATES bases)
  set(flags "")
  foreach(base IN LISTS bases)
    list(JOIN code_${base} "," code)
    # The brackets keep the list one argument and need quotes in no shell that ninja or make uses.
    list(APPEND flags "--generate-code=arch=compute_${base},code=[${code}]")
  endforeach()
  set(${out} "${flags}" PARENT_SCOPE)
endfunction()
