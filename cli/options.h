#pragma once

#include <string>
#include <vector>

#include "export/export_model.h"
#include "pipeline/config.h"
#include "plan/make_plan.h"
#include "profile/options.h"

namespace CLI {
class App;
}

namespace elastify::cli {

inline constexpr const char* kModelHelp = "Hugging Face directory, .gguf or llama2.c .bin";

// Flags that several commands share.
void add_text_options(CLI::App& command, profile::ProfileOptions& options);
/// Of text, and what is measured on it.
void add_profile_options(CLI::App& command, profile::ProfileOptions& options, bool with_metrics = true);
void add_plan_options(CLI::App& command, plan::PlanOptions& options);
void add_levels_option(CLI::App& command, std::vector<double>& levels, const std::string& help);
void add_repair_options(CLI::App& command, std::string& compensation, pipeline::ReorderSection& section);
void add_metric_option(CLI::App& command, Metric& metric,
                       const std::string& purpose = "importance to order by");

/// Those flags of every command that a YAML file states as well, if they were given: "device=cuda".
void add_overrides(const CLI::App& command, std::vector<std::string>& overrides);

}  // namespace elastify::cli
