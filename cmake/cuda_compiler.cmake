# SPDX-License-Identifier: Apache-2.0
#
# Finds nvcc, and makes CMake take it wherever it lies.

# Sets <out> to the path of nvcc, or to "" where there is none. A place that the user named but that
# holds no nvcc is an error, never a silent CPU build.
function(qutlass_find_nvcc out)
  set(${out} "" PARENT_SCOPE)
  if(CMAKE_CUDA_COMPILER)
    set(${out} "${CMAKE_CUDA_COMPILER}" PARENT_SCOPE)
    return()
  endif()
  foreach(variable CUDACXX CUDA_HOME CUDA_PATH)
    set(value "$ENV{${variable}}")
    if(value STREQUAL "")
      continue()
    endif()
    unset(nvcc)
    if(variable STREQUAL "CUDACXX")
      find_program(nvcc "${value}" NO_CACHE)
    else()
      find_program(nvcc nvcc PATHS "${value}/bin" NO_DEFAULT_PATH NO_CACHE)
    endif()
    if(NOT nvcc)
      message(FATAL_ERROR "qutlass: ${variable} is \"${value}\", but no nvcc was found there. "
        "Correct or unset it; -DQUTLASS_WITH_CUDA=OFF builds for the CPU only.")
    endif()
    set(${out} "${nvcc}" PARENT_SCOPE)
    return()
  endforeach()
  unset(nvcc)
  # PATH alone at first: CMake's own default folders would go before the Python packages.
  find_program(nvcc nvcc PATHS ENV PATH NO_DEFAULT_PATH NO_CACHE)
  foreach(root IN LISTS QUTLASS_PYTHON_CUDA ITEMS /usr/local/cuda)
    if(NOT nvcc)
      find_program(nvcc nvcc PATHS "${root}/bin" NO_DEFAULT_PATH NO_CACHE)
    endif()
  endforeach()
  if(nvcc)
    set(${out} "${nvcc}" PARENT_SCOPE)
  endif()
endfunction()

# Readies CMake to enable CUDA with that nvcc, and sets QUTLASS_CUDART_STATIC. CMake's own search for
# the toolkit is not asked: it wants a libcudart.so that the PyPI packages do not have, and the one
# library needed here is the static runtime.
macro(qutlass_prepare_nvcc nvcc)
  # nvcc itself says where its toolkit is, also when it is a script that calls another nvcc.
  execute_process(
    COMMAND "${nvcc}" --dryrun -x cu -c /dev/null
    OUTPUT_VARIABLE _nvcc_words ERROR_VARIABLE _nvcc_words RESULT_VARIABLE _nvcc_code)
  if(NOT _nvcc_code EQUAL 0 OR NOT _nvcc_words MATCHES "#\\$ TOP=([^\r\n]*)")
    message(FATAL_ERROR "qutlass: ${nvcc} does not work:\n${_nvcc_words}")
  endif()
  get_filename_component(_nvcc_root "${CMAKE_MATCH_1}" REALPATH)
  set(_nvcc_libraries lib64 lib "targets/${CMAKE_HOST_SYSTEM_PROCESSOR}-linux/lib"
    targets/sbsa-linux/lib)
  unset(QUTLASS_CUDART_STATIC)
  find_library(QUTLASS_CUDART_STATIC NAMES libcudart_static.a PATHS "${_nvcc_root}"
    PATH_SUFFIXES ${_nvcc_libraries} NO_DEFAULT_PATH NO_CACHE)
  if(NOT QUTLASS_CUDART_STATIC)
    message(FATAL_ERROR "qutlass: libcudart_static.a, the static CUDA runtime, is not beside ${nvcc} "
      "(looked in ${_nvcc_root}); the runtime package of the same CUDA release brings it.")
  endif()
  # nvcc links against lib64/, the PyPI packages have lib/: without this the trial links of
  # enable_language(CUDA) fail. The build itself links by full path.
  get_filename_component(_nvcc_libraries "${QUTLASS_CUDART_STATIC}" DIRECTORY)
  set(ENV{LIBRARY_PATH} "${_nvcc_libraries}:$ENV{LIBRARY_PATH}")
  set(CMAKE_CUDA_COMPILER "${nvcc}")
endmacro()
