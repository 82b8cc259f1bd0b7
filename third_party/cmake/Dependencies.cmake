# Every package the project uses, as a target. scripts/setup.sh installs them.

find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json 3.9 REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(CLI11 2.1 REQUIRED)
if(BUILD_TESTING)
  find_package(doctest REQUIRED)
endif()
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(SENTENCEPIECE REQUIRED IMPORTED_TARGET sentencepiece)

find_package(yaml-cpp REQUIRED)
if(NOT TARGET yaml-cpp::yaml-cpp)  # before 0.8
  add_library(yaml-cpp::yaml-cpp ALIAS yaml-cpp)
endif()

find_package(HDF5 REQUIRED COMPONENTS C)
add_library(elastify_hdf5 INTERFACE)
target_include_directories(elastify_hdf5 SYSTEM INTERFACE ${HDF5_C_INCLUDE_DIRS})
target_link_libraries(elastify_hdf5 INTERFACE ${HDF5_C_LIBRARIES})

# LibTorch 1.13 (Debian 12) up to any 2.x (CMAKE_PREFIX_PATH). We take its headers and libraries but not its compiler
# flags, and add OpenMP: without it, at::parallel_for in our files would run on one thread.
find_package(Torch REQUIRED)
if(Torch_VERSION VERSION_LESS 1.13 OR Torch_VERSION VERSION_GREATER_EQUAL 3)
  message(FATAL_ERROR "LibTorch ${Torch_VERSION} found; 1.13 up to 2.x is supported")
endif()
add_library(elastify_torch INTERFACE)
target_include_directories(elastify_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_link_libraries(elastify_torch INTERFACE ${TORCH_LIBRARIES} OpenMP::OpenMP_CXX)
if(TORCH_CXX_FLAGS MATCHES "_GLIBCXX_USE_CXX11_ABI=([01])")
  add_compile_definitions(_GLIBCXX_USE_CXX11_ABI=${CMAKE_MATCH_1})
endif()

# Debian's LibTorch calls the BLAS that libblas.so.3 resolves to. The reference BLAS is 50 times slower.
file(REAL_PATH /usr/lib/${CMAKE_CXX_LIBRARY_ARCHITECTURE}/libblas.so.3 blas_library)
if(EXISTS ${blas_library} AND blas_library MATCHES "/blas/libblas")
  message(WARNING "libblas.so.3 is the reference BLAS (${blas_library}): LibTorch will be about 50 times "
                  "slower than it could be; apt-get install libopenblas0-openmp")
endif()

# Several processes for one profile; without MPI there is one. FindMPI makes a target even where it finds nothing, so
# elastify_mpi is what others link: it is empty then.
option(ELASTIFY_MPI "Use MPI where it is installed" ON)
add_library(elastify_mpi INTERFACE)
if(ELASTIFY_MPI)
  find_package(MPI COMPONENTS C)
  if(MPI_C_FOUND)
    target_link_libraries(elastify_mpi INTERFACE MPI::MPI_C)
    target_compile_definitions(elastify_mpi INTERFACE ELASTIFY_WITH_MPI OMPI_SKIP_MPICXX)
  endif()
endif()
