# SPDX-License-Identifier: Apache-2.0
#
# Finds the headers of CUTLASS: CUTLASS_PATH, the submodule, the PyPI package, in that order.

set(QUTLASS_CUTLASS_VERSION 4.2.0)

# Sets <out_include> to the include folder and <out_version> to the version its headers state.
function(qutlass_find_cutlass out_include out_version)
  set(header include/cutlass/cutlass.h)
  foreach(named "${CUTLASS_PATH}" "$ENV{CUTLASS_PATH}")
    if(named STREQUAL "")
      continue()
    endif()
    if(EXISTS "${named}/${header}")
      set(include "${named}/include")
    elseif(EXISTS "${named}/cutlass/cutlass.h")  # the include folder itself was named
      set(include "${named}")
    else()
      message(FATAL_ERROR "qutlass: CUTLASS_PATH is \"${named}\", but ${header} is not there.")
    endif()
    break()
  endforeach()
  if(NOT include)
    if(EXISTS "${PROJECT_SOURCE_DIR}/third_party/cutlass/${header}")
      set(include "${PROJECT_SOURCE_DIR}/third_party/cutlass/include")
    elseif(QUTLASS_PYTHON_CUTLASS AND EXISTS "${QUTLASS_PYTHON_CUTLASS}/cutlass/cutlass.h")
      set(include "${QUTLASS_PYTHON_CUTLASS}")
    else()
      message(FATAL_ERROR "qutlass: the headers of CUTLASS ${QUTLASS_CUTLASS_VERSION} were not found. "
        "Any one of these brings them:\n"
        "  1. CUTLASS_PATH=<a checkout of CUTLASS>, in the environment or with -D\n"
        "  2. git submodule update --init third_party/cutlass\n"
        "  3. pip install --no-deps nvidia-cutlass==${QUTLASS_CUTLASS_VERSION}.0\n"
        "(-DQUTLASS_WITH_CUDA=OFF builds for the CPU only and needs none.)")
    endif()
  endif()

  set(version "")
  file(STRINGS "${include}/cutlass/version.h" lines REGEX "#define CUTLASS_(MAJOR|MINOR|PATCH) ")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE ".* ([0-9]+).*" "\\1" number "${line}")
    list(APPEND version "${number}")
  endforeach()
  list(JOIN version "." version)
  if(NOT version VERSION_EQUAL QUTLASS_CUTLASS_VERSION)
    message(WARNING "qutlass: CUTLASS ${version} in ${include}; "
      "the kernels are written and tested with ${QUTLASS_CUTLASS_VERSION}.")
  endif()
  message(STATUS "qutlass: CUTLASS ${version} in ${include}")
  set(${out_include} "${include}" PARENT_SCOPE)
  set(${out_version} "${version}" PARENT_SCOPE)
endfunction()
