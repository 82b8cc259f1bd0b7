#include "nn/mlp_half.h"

#include "support/half_gradients.h"

using namespace elastify;
using namespace elastify::test;

TEST_CASE("mlp half: output and all gradients are the reference's, at every width, with all repairs") {
  check_half_in_every_variant(nn::Half::kMlp);
}
