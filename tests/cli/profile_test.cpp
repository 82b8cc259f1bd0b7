// Tests `elastify profile` as its users run it: with a memory limit, killed and resumed, in several
// processes.

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "model/imatrix.h"
#include "model/profile.h"
#include "profile/memory.h"
#include "support/program.h"
#include "support/skip.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

/// A tiny model with a tokenizer, and text for it.
struct Subject {
  test::TemporaryDirectory directory;
  ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 4, .d_model = 64, .d_ff = 128, .n_vocab = 512});
  fs::path model = directory / "model", text = directory / "text.txt";

  Subject() {
    test::write_tiny_hf_model(spec, model, 1);
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
      fs::copy_file(fs::path(ELASTIFY_SOURCE_DIR) / "tests/data/tokenizers/gpt-2" / name, model / name);
    std::mt19937_64 engine(7);
    std::string words;
    for (int i = 0; i < 20000; ++i) words += fmt::format("word{} ", engine() % 997);
    write_text(text, words);
  }
  std::string arguments(const fs::path& output, const std::string& more) const {
    return fmt::format("profile {} --data {} --tokens 9600 --seq 64 --batch 1 -q {} -o {}", model.string(),
                       text.string(), more, output.string());
  }
};

/// A memory limit into which the model fits only if it is streamed layer by layer.
std::string tight_limit(const Subject& subject) {
  profile::ProfileOptions options;
  options.metrics = {Metric::kTaylor, Metric::kTaylorElement};
  options.second_moments = true;
  options.text.seq = 64;
  options.text.batch = 1;
  const profile::MemoryNeed need = profile::memory_need(subject.spec, options);
  return fmt::format("--max-ram {}", (need.resident + need.streamed) / 2);
}

const char* kEverything =
    "--metrics taylor,fisher,wanda,wifv,activation,taylor-element,magnitude --second-moments "
    "--removal-tokens 512 --threads 1";

/// Starts the program and kills it after a while.
/// \returns whether it had finished before, with status 0
bool run_for(const std::string& arguments, std::chrono::milliseconds time) {
  const pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    const std::string command =
        fmt::format("exec '{}/elastify' {} 2>/dev/null >/dev/null", ELASTIFY_BINARY_DIR, arguments);
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  const auto end = std::chrono::steady_clock::now() + time;
  int status = 0;
  while (std::chrono::steady_clock::now() < end) {
    if (waitpid(child, &status, WNOHANG) == child) {
      REQUIRE(WIFEXITED(status));
      REQUIRE(WEXITSTATUS(status) == 0);
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return false;
}

void kill_and_go_on(bool streamed, int n_kills) {
  const Subject subject;
  const std::string mode = streamed ? tight_limit(subject) : "";
  const fs::path whole = subject.directory / "whole.h5", pieces = subject.directory / "pieces.h5";
  const std::string options = fmt::format("{} {} --save-every 0", kEverything, mode);
  const auto start = std::chrono::steady_clock::now();
  REQUIRE(run_for(subject.arguments(whole, options), std::chrono::minutes(5)));
  const auto duration =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
  std::mt19937_64 engine(11);
  int n_ended = 0;
  for (int killed = 0; killed < n_kills;) {
    const auto time = duration * static_cast<int64_t>(20 + engine() % 70) / 100;
    if (!run_for(subject.arguments(pieces, options + " --resume"), time)) {
      ++killed;
      if (!fs::exists(pieces)) continue;
      fs::remove_all(subject.directory / "pieces.h5.partial");  // killed at the very end
    }
    ++n_ended;
    REQUIRE(read_text(pieces) == read_text(whole));
    CHECK_FALSE(fs::exists(subject.directory / "pieces.h5.partial"));
    fs::remove(pieces);
  }
  if (fs::exists(subject.directory / "pieces.h5.partial")) {
    REQUIRE(run_for(subject.arguments(pieces, options + " --resume"), std::chrono::minutes(5)));
    CHECK(read_text(pieces) == read_text(whole));
  }
  MESSAGE((streamed ? "streamed" : "resident"), ": ", n_kills, " kills, ", n_ended,
          " runs that ended between them");
}

double largest_difference(const Profile& a, const Profile& b) {
  double largest = 0;
  for (const auto& [metric, spaces] : a.importance)
    for (size_t s = 0; s < spaces.size(); ++s)
      for (size_t u = 0; u < spaces[s].size(); ++u) {
        const double expected = b.importance.at(metric)[s][u];
        largest = std::max(largest, std::abs(spaces[s][u] - expected) / std::max(1e-12, std::abs(expected)));
      }
  return largest;
}

TEST_SUITE("cli") {
  TEST_CASE("profile: killed 25 times at any moment, it goes on and ends with the same bytes") {
    kill_and_go_on(false, 25);
  }

  TEST_CASE("profile: streamed and killed 25 times at any moment, it goes on and ends with the same bytes") {
    kill_and_go_on(true, 25);
  }

  TEST_CASE("profile: a memory limit makes it stream, to the same scores; one too small is refused") {
    const Subject subject;
    const fs::path resident = subject.directory / "a.h5", streamed = subject.directory / "b.h5";
    const auto run = [&](const fs::path& output, const std::string& more) {
      return test::run_elastify(subject.arguments(output, std::string(kEverything) + " --json " + more));
    };
    CHECK(nlohmann::json::parse(run(resident, "").out).at("streamed") == false);
    CHECK(nlohmann::json::parse(run(streamed, tight_limit(subject)).out).at("streamed") == true);
    CHECK(largest_difference(load_profile(streamed, subject.spec), load_profile(resident, subject.spec)) <
          1e-5);
    const test::Outcome refused = run(subject.directory / "c.h5", "--max-ram 100MiB");
    CHECK(refused.status == 2);
    CHECK(refused.err.find("max-ram 0.10 GiB: even layer by layer, 0.") != std::string::npos);
    const test::Outcome wrong = run(subject.directory / "c.h5", "--max-ram much");
    CHECK(wrong.err.find("'much' is not a size") != std::string::npos);
  }

  TEST_CASE("profile: two processes find what one finds") {
    if (std::system("command -v mpirun >/dev/null") != 0) {
      test::skip("mpirun is not installed");
      return;
    }
    const Subject subject;
    const fs::path one = subject.directory / "one.h5", two = subject.directory / "two.h5";
    CHECK(test::run_elastify(subject.arguments(one, kEverything)).status == 0);
    for (const std::string& mode : {std::string(), tight_limit(subject)}) {
      CAPTURE(mode);
      const test::Outcome outcome =
          test::run_elastify(subject.arguments(two, fmt::format("{} {} --force", kEverything, mode)),
                             "exec mpirun --allow-run-as-root --oversubscribe --mca btl self,tcp --mca "
                             "btl_tcp_if_include lo -np 2 ");
      CAPTURE(outcome.err);
      REQUIRE(outcome.status == 0);
      const Profile a = load_profile(one, subject.spec), b = load_profile(two, subject.spec);
      CHECK(largest_difference(b, a) < 1e-5);
      CHECK(b.base_loss == doctest::Approx(a.base_loss).epsilon(1e-9));
      for (size_t l = 0; l < a.removal_loss.size(); ++l)
        CHECK(b.removal_loss[l] == doctest::Approx(a.removal_loss[l]).epsilon(1e-4));
      const SecondMoments p = load_second_moments(one, subject.spec, 3),
                          q = load_second_moments(two, subject.spec, 3);
      for (size_t i = 0; i < p.xtx.size(); i += 97)
        CHECK(q.xtx[i] == doctest::Approx(p.xtx[i]).epsilon(1e-5).scale(std::abs(p.xtx[0])));
      CHECK_FALSE(fs::exists(subject.directory / "two.h5.partial"));
    }
    // There is one batch for two processes, so one of them has nothing to do.
    for (const std::string& mode : {std::string(), tight_limit(subject)}) {
      CAPTURE(mode);
      const test::Outcome idle = test::run_elastify(
          fmt::format("profile {} --data {} --tokens 64 --seq 64 --batch 1 {} {} --force -o {}",
                      subject.model.string(), subject.text.string(), kEverything, mode, two.string()),
          "exec mpirun --allow-run-as-root --oversubscribe -np 2 ");
      CAPTURE(idle.err);
      CHECK(idle.status == 0);
    }
    const test::Outcome failed = test::run_elastify(subject.arguments(two, kEverything),
                                                    "exec mpirun --allow-run-as-root --oversubscribe -np 2 ");
    CHECK(failed.status != 0);
    CHECK(failed.err.find("two.h5") != std::string::npos);
  }

  TEST_CASE("profile: reorder takes orders out of second moments, and says when there are none") {
    const Subject subject;
    const fs::path with = subject.directory / "with.h5", none = subject.directory / "none.h5";
    CHECK(test::run_elastify(subject.arguments(with, "--metrics obs --removal-tokens 0")).status == 0);
    CHECK(test::run_elastify(subject.arguments(none, "--metrics wanda --removal-tokens 0")).status == 0);
    const auto reorder = [&](const char* metric, const fs::path& profile, const char* out) {
      return test::run_elastify(fmt::format("reorder {} --profile {} --metric {} --levels 0.6 --grid 8 -o {}",
                                            subject.model.string(), profile.string(), metric,
                                            (subject.directory / out).string()));
    };
    for (const char* metric : {"obs", "forward"}) {
      CAPTURE(metric);
      const test::Outcome done = reorder(metric, with, metric);
      CAPTURE(done.err);
      REQUIRE(done.status == 0);
      CHECK(test::run_elastify(fmt::format("verify {} --against {}", (subject.directory / metric).string(),
                                           subject.model.string()))
                .status == 0);
    }
    CHECK(read_text(subject.directory / "obs/permutation.h5") !=
          read_text(subject.directory / "forward/permutation.h5"));
    const test::Outcome refused = reorder("obs", none, "refused");
    CHECK(refused.status == 2);
    CHECK(refused.err.find("run `elastify profile` with --second-moments") != std::string::npos);
  }

  TEST_CASE("profile: an importance matrix gives scores without text, wanda's if it is of the same text") {
    const Subject subject;
    const fs::path measured = subject.directory / "measured.h5", read = subject.directory / "read.h5";
    CHECK(test::run_elastify(subject.arguments(measured, "--metrics wanda --removal-tokens 0")).status == 0);
    const test::Outcome outcome = test::run_elastify(fmt::format(
        "profile {} --imatrix {} -o {}", subject.model.string(), measured.string(), read.string()));
    CAPTURE(outcome.err);
    REQUIRE(outcome.status == 0);
    const Profile a = load_profile(measured, subject.spec), b = load_profile(read, subject.spec);
    for (size_t s = 0; s < subject.spec.spaces.size(); ++s)
      for (size_t u = 0; u < a.importance.at(Metric::kWanda)[s].size(); ++u)
        CHECK(b.importance.at(Metric::kImatrix)[s][u] ==
              doctest::Approx(a.importance.at(Metric::kWanda)[s][u]).epsilon(1e-5));
    const test::Outcome none =
        test::run_elastify(fmt::format("profile {} --metrics imatrix -o {}/x.h5", subject.model.string(),
                                       subject.directory.path().string()));
    CHECK(none.status != 0);
    CHECK(none.err.find("name one with --imatrix FILE") != std::string::npos);
  }
}

}  // namespace
}  // namespace elastify
