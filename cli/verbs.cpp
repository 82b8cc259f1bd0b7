#include "base/error.h"
#include "cli/commands.h"
#include "pipeline/stages.h"

namespace elastify::cli {

const std::vector<Verb>& verbs() {
  using pipeline::stage_named;
  static const std::vector<Verb> all{
      {"inspect", "show what a model, an output or a profile holds; --system: what this machine has",
       add_inspect},
      {"profile", stage_named("profile").summary, add_profile},
      {"plan", "choose every level's widths, without touching weights", add_plan},
      {"reorder", stage_named("reorder").summary, add_reorder},
      {"export", stage_named("export").summary, add_export},
      {"slice", "take a level's own file out of a packed one, by copying", add_slice},
      {"verify", stage_named("verify").summary, add_verify},
      {"eval", stage_named("eval").summary, add_eval},
      {"install-check", "load every file of an artifact in the runtimes that are installed here",
       add_install_check},
      {"run", "profile, reorder, export, verify and evaluate, as a YAML file says", add_run},
      {"sweep",
       "perplexity at every level for a grid of metrics, plans and other options, as a YAML file says",
       add_sweep},
      {"options", "list every option of every stage: flag, YAML key, range, default, presets", add_options}};
  return all;
}

}  // namespace elastify::cli
