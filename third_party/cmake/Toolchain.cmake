# How everything is compiled: compiler cache, fast linker, warnings as errors, sanitizers.

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  # ccache can cache precompiled headers only if it may ignore their time stamps and defines.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${CCACHE_PROGRAM})
endif()

find_program(MOLD_PROGRAM mold)
if(MOLD_PROGRAM)
  add_link_options(-fuse-ld=mold)
endif()

# For our own code only: dependencies are included as SYSTEM.
add_library(elastify_warnings INTERFACE)
target_compile_options(elastify_warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor
                                                   -Woverloaded-virtual)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees overlaps and overflows in std::string's own code (GCC bug 105651).
  target_compile_options(elastify_warnings INTERFACE -Wno-restrict -Wno-stringop-overflow)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  # GCC 13 and later see overruns in std::vector<bool>'s own code, which LibTorch's headers use (GCC bug 110498).
  target_compile_options(elastify_warnings INTERFACE -Wno-array-bounds -Wno-stringop-overflow)
endif()
if(ELASTIFY_WERROR)
  target_compile_options(elastify_warnings INTERFACE -Werror)
endif()

if(ELASTIFY_SANITIZE)
  add_compile_options(-fsanitize=${ELASTIFY_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${ELASTIFY_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Under sanitizers GCC sees uninitialised members in std::regex's own code (GCC bug 105562).
    target_compile_options(elastify_warnings INTERFACE -Wno-maybe-uninitialized)
  endif()
endif()

# elastify_library(name SOURCES... DEPENDS targets...): the library of one folder.
function(elastify_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  add_library(elastify_${name} STATIC ${ARG_SOURCES})
  target_include_directories(elastify_${name} PUBLIC ${CMAKE_SOURCE_DIR}/lib)
  target_link_libraries(elastify_${name} PUBLIC ${ARG_DEPENDS} PRIVATE ${ARG_PRIVATE_DEPENDS} elastify_warnings)
endfunction()
