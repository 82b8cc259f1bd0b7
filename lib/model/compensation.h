#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace elastify {

/// Flags for the kinds of own parameters with which a level can compensate for the units that it leaves out.
enum class Compensation : uint8_t {
  kNone = 0,
  kBias = 1,     ///< constants added to the outputs of matrices
  kNorm = 2,     ///< weights of norms; those of the output norm keep a level from being overconfident
  kAdapter = 4,  ///< low-rank matrices beside the weights, which stay shared
  kBaked = 8,    ///< weights of matrices, which the level then does not share
  kAdapterBias = kAdapter | kBias,
  kBakedBias = kBaked | kBias,
};

constexpr bool has(Compensation whole, Compensation part) {
  return (static_cast<unsigned>(whole) & static_cast<unsigned>(part)) != 0;
}
constexpr Compensation operator|(Compensation a, Compensation b) {
  return static_cast<Compensation>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
constexpr Compensation& operator|=(Compensation& a, Compensation b) {
  return a = a | b;
}
constexpr Compensation without(Compensation whole, Compensation part) {
  return static_cast<Compensation>(static_cast<unsigned>(whole) & ~static_cast<unsigned>(part));
}

/// "adapter+bias+norm", always in this order; "none".
std::string name_of(Compensation compensation);
/// Reads parts as a file states them, in any order; "" and "none" mean no parts.
/// \throws Error  naming the unknown part and the known ones
Compensation parts_named(std::string_view name);

/// All combinations that levels can be fitted with: "none", "bias", ... None combines adapters with baked
/// weights, because they are alternatives.
std::vector<std::string> compensation_names();
/// Reads one of these names, with its parts in any order: "norm+baked" is "baked+norm".
/// \throws UsageError  listing the known names
Compensation compensation_named(std::string_view name);

}  // namespace elastify
