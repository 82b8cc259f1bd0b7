// Does what llama-quantize does with an importance matrix, with llama.cpp's own reader and quantiser from the
// prebuilt libraries that node-llama-cpp ships. Shares no code with elastify. Built by setup.sh.
//
//   llama_quantize IMATRIX.gguf|none MODEL.gguf OUT.gguf [FTYPE]
//
// Without FTYPE (a number of enum llama_ftype) it writes Q4_0 as `llama-quantize` does; with it, all matrices
// in that one type, as `llama-quantize --pure`. On two threads. stdout: "entries N", "datasets N", "chunks N
// of SIZE", "seconds S" of the quantising alone. Exit codes: 0 done, 2 usage, 3 the matrix does not load, 4
// the model cannot be quantised with it.

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "imatrix-loader.h"
#include "llama.h"

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) return 2;
  const std::string file = argv[1];
  common_imatrix matrix;
  if (file != "none" && (!common_imatrix_load(file, matrix) || (!matrix.is_legacy && !matrix.has_metadata)))
    return 3;
  std::printf("entries %zu\ndatasets %zu\nchunks %d of %d\n", matrix.entries.size(), matrix.datasets.size(),
              matrix.chunk_count, matrix.chunk_size);

  std::vector<std::vector<float>> means;
  means.reserve(matrix.entries.size());
  std::vector<llama_model_imatrix_data> data;
  for (const auto& [name, entry] : matrix.entries) {
    std::vector<float>& values = means.emplace_back();
    for (const float sum : entry.sums) values.push_back(sum / static_cast<float>(entry.counts.at(0)));
    data.push_back({name.c_str(), values.data(), values.size()});
  }
  data.push_back({nullptr, nullptr, 0});

  llama_backend_init();
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_MOSTLY_Q4_0;
  params.nthread = 2;
  if (argc == 5) {
    params.ftype = static_cast<llama_ftype>(std::stoi(argv[4]));
    params.pure = true;
  }
  if (file != "none") params.imatrix = data.data();
  const auto start = std::chrono::steady_clock::now();
  const bool done = llama_model_quantize(argv[2], argv[3], &params) == 0;
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  std::printf("seconds %.3f\n", taken.count());
  return done ? 0 : 4;
}
