# What every folder uses: r1v_library(NAME SOURCES ... LINK ...) and r1v_test(NAME SOURCES ... LINK ...).

set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

# Warnings, sanitizers and the folder that includes are relative to.
add_library(r1v_settings INTERFACE)
target_include_directories(r1v_settings INTERFACE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_BINARY_DIR}/generated)
target_compile_options(r1v_settings INTERFACE -Wall -Wextra -Wpedantic -Werror)
# Numbers are those of numpy: no fused multiply-add that the source does not write.
target_compile_options(r1v_settings INTERFACE -ffp-contract=off)
if(R1V_SANITIZE)
  # -g1: lines of code for the sanitizer's report, and no variables, which take a third of the compiler's time.
  set(flags -fsanitize=${R1V_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all -g1)
  target_compile_options(r1v_settings INTERFACE ${flags})
  target_link_options(r1v_settings INTERFACE ${flags})
endif()

# A static library r1v_NAME, which libr1v, its program and the tests link.
function(r1v_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(r1v_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(r1v_${name} PUBLIC r1v_settings ${ARG_LINK})
  # The JSON library is most of what is compiled: once is enough.
  if(NOT CMAKE_UNITY_BUILD AND name STREQUAL base)
    target_precompile_headers(r1v_${name} PRIVATE <nlohmann/json.hpp>)
  elseif(NOT CMAKE_UNITY_BUILD)
    target_precompile_headers(r1v_${name} REUSE_FROM r1v_base)
  endif()
endfunction()

# A GoogleTest program r1v_NAME_test, one test of ctest for each of its cases.
function(r1v_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_executable(r1v_${name}_test ${ARG_SOURCES})
  target_link_libraries(r1v_${name}_test PRIVATE r1v_settings ${ARG_LINK} GTest::gtest_main)
  # Each check is compiled, and runs once. What is tested is in the libraries, which are optimized.
  target_compile_options(r1v_${name}_test PRIVATE -O0)
  gtest_discover_tests(r1v_${name}_test DISCOVERY_MODE PRE_TEST)
endfunction()
if(R1V_BUILD_TESTS)
  include(GoogleTest)
endif()
