# SPDX-License-Identifier: Apache-2.0
#
# One translation unit for each row of csrc/gemm/tiles.inc, so that rows compile in parallel and a
# changed row rebuilds alone.

# Sets <out> to the list of generated files. Each is named by its row, as gemm_tile_w4a8_128x256x128
# _w64x64x128_s3.cu is, which is how tools/check_resources.py tells the objects apart.
function(qutlass_gemm_tile_sources table out)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${table}")
  # Matched on whole lines, so that a row inside a comment is none.
  file(STRINGS "${table}" lines REGEX "^[ \t]*QUTLASS_TILE[ \t]*\\(")
  set(folder "${PROJECT_BINARY_DIR}/gemm_tiles")
  set(files "")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "^[^(]*\\(([^)]*)\\).*$" "\\1" row "${line}")
    string(REGEX REPLACE "[ \t]+" "" row "${row}")
    if(NOT row MATCHES "^k([A-Za-z0-9_]+),([0-9]+),([0-9]+),([0-9]+),([0-9]+),([0-9]+),([0-9]+),([0-9]+)$")
      message(FATAL_ERROR "${table}: not a row of QUTLASS_TILE(op, M, N, K, warp M, N, K, stages): ${line}")
    endif()
    string(TOLOWER "${CMAKE_MATCH_1}" op)
    set(name "${op}_${CMAKE_MATCH_2}x${CMAKE_MATCH_3}x${CMAKE_MATCH_4}")
    string(APPEND name "_w${CMAKE_MATCH_5}x${CMAKE_MATCH_6}x${CMAKE_MATCH_7}_s${CMAKE_MATCH_8}")
    set(file "${folder}/gemm_tile_${name}.cu")
    if(file IN_LIST files)
      message(FATAL_ERROR "${table}: the row stands there twice: ${line}")
    endif()
    string(REPLACE "," ", " arguments "${row}")
    # file(CONFIGURE) leaves a file that would not change alone, and with it its object.
    file(CONFIGURE OUTPUT "${file}" @ONLY CONTENT
"// Written by cmake/gemm_tiles.cmake from csrc/gemm/tiles.inc.
#include \"gemm/tile_instance.cuh\"
QUTLASS_INSTANTIATE(@arguments@)
")
    list(APPEND files "${file}")
  endforeach()
  if(NOT files)
    message(FATAL_ERROR "${table}: no rows of QUTLASS_TILE(...) were found")
  endif()

  # Rows that were taken out of the table leave no object behind for the resource check to read.
  file(GLOB stale "${folder}/gemm_tile_*.cu")
  list(REMOVE_ITEM stale ${files})
  if(stale)
    file(REMOVE ${stale})
  endif()
  set(${out} "${files}" PARENT_SCOPE)
endfunction()
