#pragma once

#include "model/repair.h"
#include "nn/decoder.h"

// Repairs between files (LevelRepairs) and forward passes (nn::LevelRepair).

namespace elastify::recover {

/// Repairs as they were fitted, for files: float32 on the CPU.
/// \param compensation  how they were fitted
LevelRepairs to_host(const nn::LevelRepair& fitted, const ModelSpec& spec, const Level& level,
                     Compensation compensation);
/// Repairs for passes of this decoder, in its type and on its device; tensors are used in place if they can
/// be.
nn::LevelRepair to_tensors(const LevelRepairs& repairs, const nn::Decoder& decoder);

}  // namespace elastify::recover
