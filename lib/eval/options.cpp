#include "eval/options.h"

#include "options/option.h"

namespace elastify::eval {

void declare(options::Options& options, EvalOptions& fields) {
  declare_text(options, fields.text, "held-out");
  options.add("tasks", fields.tasks, "multiple-choice items (.jsonl): accuracy").alias("task");
  options.add("items", fields.items, "the first items of every task; 0: all").at_least(0);
  options.add("baseline", fields.baseline,
              "also measure a random order of the units at the same widths, without repairs");
}

}  // namespace elastify::eval
