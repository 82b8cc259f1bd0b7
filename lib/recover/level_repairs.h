#pragma once

#include "model/repair.h"
#include "nn/decoder.h"

// Converts repairs between their form in files (LevelRepairs) and in forward passes (nn::LevelRepair).

namespace elastify::recover {

/// Converts fitted repairs to their form in files: float32 on the CPU.
/// \param compensation  the option they were fitted with
LevelRepairs to_host(const nn::LevelRepair& fitted, const ModelSpec& spec, const Level& level,
                     Compensation compensation);
/// Converts repairs for passes of this decoder, in its type and on its device. Tensors are used in place if
/// possible.
nn::LevelRepair to_tensors(const LevelRepairs& repairs, const nn::Decoder& decoder);

}  // namespace elastify::recover
