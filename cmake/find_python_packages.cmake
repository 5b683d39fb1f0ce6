# SPDX-License-Identifier: Apache-2.0
#
# What a Python, when there is one, can give the build: torch's headers, CUTLASS's headers and the
# CUDA compiler, each out of an installed package. Nothing is imported: looking for a package's
# folder takes milliseconds where importing torch takes seconds.
#
# Sets QUTLASS_PYTHON_TORCH (folder of the torch package), QUTLASS_PYTHON_TORCH_VERSION,
# QUTLASS_PYTHON_CUTLASS (include folder) and QUTLASS_PYTHON_CUDA (list of folders that may hold
# bin/nvcc); each is empty where there is nothing.

function(qutlass_find_python_packages)
  foreach(name TORCH TORCH_VERSION CUTLASS CUDA)
    set(QUTLASS_PYTHON_${name} "" PARENT_SCOPE)
  endforeach()
  set(Python_FIND_VIRTUALENV FIRST)
  find_package(Python 3.8 COMPONENTS Interpreter QUIET)
  if(NOT Python_Interpreter_FOUND)
    return()
  endif()
  set(script [=[
import glob, os, re, sys, sysconfig
from importlib.util import find_spec

def folder(package):
    spec = find_spec(package)
    return spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else ""

torch = folder("torch")
version = ""
if torch:
    with open(os.path.join(torch, "version.py")) as f:
        version = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", f.read()).group(1)
cutlass = folder("cutlass_library")
if cutlass:
    cutlass = os.path.join(cutlass, "source", "include")
# The paths of the installation itself come last: an isolated build hides them from sys.path, yet a
# compiler installed there is as good as one on PATH.
sites = dict.fromkeys(p for p in [*sys.path, *map(sysconfig.get_path, ("purelib", "platlib"))] if p)
cuda = [os.path.dirname(os.path.dirname(nvcc)) for site in sites
        for nvcc in sorted(glob.glob(os.path.join(site, "nvidia", "*", "bin", "nvcc")), reverse=True)]
print("|".join([torch, version, cutlass, ";".join(cuda)]))
]=])
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "${script}"
    OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_VARIABLE error RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    message(WARNING "qutlass: ${Python_EXECUTABLE} could not be asked for its packages:\n${error}")
    return()
  endif()
  if(found MATCHES "^([^|]*)\\|([^|]*)\\|([^|]*)\\|([^|]*)$")
    set(QUTLASS_PYTHON_TORCH "${CMAKE_MATCH_1}" PARENT_SCOPE)
    set(QUTLASS_PYTHON_TORCH_VERSION "${CMAKE_MATCH_2}" PARENT_SCOPE)
    set(QUTLASS_PYTHON_CUTLASS "${CMAKE_MATCH_3}" PARENT_SCOPE)
    set(QUTLASS_PYTHON_CUDA "${CMAKE_MATCH_4}" PARENT_SCOPE)
  endif()
endfunction()
