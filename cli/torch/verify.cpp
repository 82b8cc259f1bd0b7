#include "pipeline/verify.h"
#include "cli/torch/work.h"
#include "nn/device.h"

namespace elastify::cli {

Report work(const Invocation& call, const VerifyCommand& command) {
  nn::set_threads(static_cast<int>(call.config.threads));
  const auto findings =
      pipeline::verify(command.path, command.against, call.config.verify, call.config.compute);
  Report report;
  report.json = {{"path", command.path.string()},
                 {"against", command.against.string()},
                 {"findings", nlohmann::ordered_json::array()}};
  for (const auto& finding : findings) {
    report.ok = report.ok && finding.holds;
    report.json["findings"].push_back(
        {{"claim", finding.claim}, {"holds", finding.holds}, {"detail", finding.detail}});
    report.text += fmt::format("{:<7} {}\n        {}\n", finding.holds ? "proved" : "REFUTED", finding.claim,
                               finding.detail);
  }
  report.json["proved"] = report.ok;
  return report;
}

}  // namespace elastify::cli
