// Tests the program as its users call it: exit status, output, and files on disk.

#include <doctest/doctest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/output_lock.h"
#include "model/imatrix.h"
#include "support/elastic_fixture.h"
#include "support/program.h"
#include "support/shared_data.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using test::Outcome;

Outcome elastify(const std::string& args, const std::string& before = "") {
  return test::run_elastify(args, before);
}

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// A tiny model in a temporary directory.
struct TinyModel {
  test::TemporaryDirectory directory;
  fs::path path = directory.path() / "model";
  explicit TinyModel(const std::string& family = "llama") {
    test::write_tiny_hf_model(test::make_tiny_spec(family), path, 1);
  }
};

TEST_SUITE("cli") {
  TEST_CASE("cli: every command has help with an example") {
    for (const char* verb : {"inspect", "profile", "reorder", "plan", "export", "slice", "verify", "eval",
                             "install-check", "run", "sweep"}) {
      CAPTURE(verb);
      const Outcome help = elastify(fmt::format("{} --help", verb));
      CHECK(help.status == 0);
      CHECK(help.out.find("Example: elastify ") != std::string::npos);
      CHECK(help.out.find("--json") != std::string::npos);
    }
    CHECK(elastify("--help").status == 0);
    CHECK(elastify("--version").out.find('.') != std::string::npos);
  }

  TEST_CASE("cli: bad usage exits with 2, says what is wrong, and prints nothing on standard output") {
    const std::vector<std::pair<std::string, std::string>> table{
        {"", "subcommand"},
        {"reordre x -o y", "reordre"},
        {"inspect", "PATH or --system"},
        {"inspect /nowhere", "no such file"},
        {"reorder /nowhere --data self -o /tmp/never", "no such file"},
        {"reorder /nowhere --metric tailor -o /tmp/never", "tailor"},
        {"reorder /nowhere --levels 0.5,2 -o /tmp/never", "2"},
        {"reorder /nowhere --data self --compensate adaptr -o /tmp/never", "unknown compensation 'adaptr'"},
        {"plan /nowhere --plan best -o /tmp/never", "best"},
        {"plan /nowhere --search-tokens 0 -o /tmp/never", "--search-tokens"},
        {"plan /nowhere --budget money -o /tmp/never", "money"},
        {"plan /nowhere --min-width 2 -o /tmp/never", "--min-width"},
        {"plan /nowhere --plot widths.png -o /tmp/never", "plots are SVG files"},
        {"export /nowhere --type q9 -o /tmp/never", "q9"},
        {"eval /nowhere", "--data or --task"},
        {"eval /nowhere --level nan --data x", "expected a level above 0, up to 1, got nan"},
        {"slice /nowhere --level nan -o /tmp/never", "expected a level above 0, up to 1, got nan"},
        {"reorder /nowhere --ridge nan -o /tmp/never", "expected a finite number, got 'nan'"},
        {"run /nowhere.yaml", "/nowhere.yaml"},
        {"sweep /nowhere.yaml", "/nowhere.yaml"},
        {"profile model --tokens -3 -o p.h5", "--tokens"},
    };
    for (const auto& [args, message] : table) {
      CAPTURE(args);
      const Outcome outcome = elastify(args);
      CAPTURE(outcome.err);
      CHECK(outcome.status != 0);
      CHECK(outcome.out.empty());
      CHECK(outcome.err.find(message) != std::string::npos);
      CHECK(outcome.err.find("error: ") != std::string::npos);
    }
  }

  TEST_CASE("cli: --json prints one object with the documented keys") {
    const TinyModel model;
    const std::string base = model.directory.path().string();
    const auto inspected =
        nlohmann::json::parse(elastify(fmt::format("inspect {} --json", model.path.string())).out);
    for (const char* key : {"family", "n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff",
                            "n_vocab", "n_params", "tied", "spaces", "levels"}) {
      CAPTURE(key);
      CHECK(inspected.contains(key));
    }
    const auto profiled = nlohmann::json::parse(
        elastify(fmt::format("profile {} --data self --tokens 64 --seq 16 -o {}/p.h5 --json",
                             model.path.string(), base))
            .out);
    for (const char* key : {"tokens", "tokens_per_second", "seconds", "peak_rss_bytes"}) {
      CAPTURE(key);
      CHECK(profiled.contains(key));
    }
    const Outcome reordered =
        elastify(fmt::format("reorder {} --profile {}/p.h5 --plan anchors --levels 0.6,0.8 -o {}/out --json",
                             model.path.string(), base, base));
    CAPTURE(reordered.err);
    CHECK(nlohmann::json::parse(reordered.out).at("levels").size() == 3);
    const auto exported = nlohmann::json::parse(
        elastify(fmt::format("export {}/out --type f32 -o {}/art --json", base, base)).out);
    CHECK(exported.at("files").size() == 3);
    const Outcome proved =
        elastify(fmt::format("verify {}/art --against {} --json", base, model.path.string()));
    CHECK(proved.status == 0);
    CHECK(nlohmann::json::parse(proved.out).at("proved") == true);
  }

  TEST_CASE("cli: plan searches widths under a budget, explains and draws them") {
    const TinyModel model;
    const std::string base = model.directory.path().string();
    CHECK(elastify(fmt::format("profile {} --data self --tokens 64 --seq 16 -o {}/p.h5", model.path.string(),
                               base))
              .status == 0);
    const std::string plan =
        fmt::format("plan {} --profile {}/p.h5 --levels 0.7,0.9 --grid 8", model.path.string(), base);
    const Outcome searched = elastify(fmt::format(
        "{} --plan dp --budget bytes:q8_0 --explain --plot {}/p.svg -o {}/p.json --json", plan, base, base));
    CAPTURE(searched.err);
    const auto json = nlohmann::json::parse(searched.out);
    CHECK(json.at("budget") == "bytes:q8_0");
    CHECK(json.at("explain").at("layers").size() == 2);
    CHECK(json.at("explain").at("layers")[0].at("mlp").at("price").size() == 2);
    CHECK(read_text(model.directory.path() / "p.svg").ends_with("</svg>\n"));
    const std::string text = elastify(fmt::format("{} --plan zscore --explain -o {}/z.json", plan, base)).out;
    for (const char* part : {"KV groups kept", "MLP width kept", "anchors that fall out", "removal: "})
      CHECK(text.find(part) != std::string::npos);
    const Outcome refused = elastify(fmt::format("{} --plan dp+kl -o {}/k.json", plan, base));
    CHECK(refused.status == 2);
    CHECK(refused.err.find("run `elastify profile` with --second-moments") != std::string::npos);
  }

  TEST_CASE("cli: refitted weights follow the repaired layers below unless that is turned off") {
    const TinyModel model;
    const auto weights = [&](const std::string& flags) {
      const fs::path output = model.directory.path() / "out";
      const Outcome done =
          elastify(fmt::format("reorder {} --preset none --data self --tokens 512 --seq 16 --levels 0.6 "
                               "--grid 8 --compensate baked {} --force -o {}",
                               model.path.string(), flags, output.string()));
      CAPTURE(done.err);
      REQUIRE(done.status == 0);
      return read_text(output / "repairs/level-060/weights.safetensors");
    };
    const std::string given_nothing = weights("");
    CHECK(weights("--sequential --whole-stream") == given_nothing);
    CHECK(weights("--no-sequential --no-whole-stream") != given_nothing);
  }

  TEST_CASE("cli: reorder measures what whole layers are dropped by") {
    const TinyModel model;
    const Outcome done =
        elastify(fmt::format("reorder {} --preset none --data self --tokens 128 --seq 16 --metric magnitude "
                             "--plan shortgpt --levels 0.5 -o {}/out",
                             model.path.string(), model.directory.path().string()));
    CAPTURE(done.err);
    CHECK(done.status == 0);
  }

  TEST_CASE("cli: a plan that was measured is what a reordered model is planned by") {
    const TinyModel model;
    const std::string base = model.directory.path().string();
    CHECK(elastify(fmt::format("profile {} --data self --tokens 128 --seq 16 --second-moments -o {}/p.h5",
                               model.path.string(), base))
              .status == 0);
    const std::string ordered = fmt::format("{} --profile {}/p.h5 --metric gram", model.path.string(), base);
    const std::string searched =
        fmt::format("plan {} --plan dp+kl --search-steps 5 --levels 0.6,0.8 --grid 8 --explain -o {}/k.json",
                    ordered, base);
    const Outcome no_text = elastify(searched);
    CHECK(no_text.status == 2);
    CHECK(no_text.err.find("--data FILE... (or self)") != std::string::npos);
    const Outcome planned = elastify(searched + " --data self --search-tokens 64 --seq 16 --json");
    CAPTURE(planned.err);
    REQUIRE(planned.status == 0);
    const auto plan = nlohmann::json::parse(planned.out);
    CHECK(plan.at("method") == "dp+kl");
    const Outcome reordered =
        elastify(fmt::format("reorder {} --widths {}/k.json -o {}/out --json", ordered, base, base));
    CAPTURE(reordered.err);
    REQUIRE(reordered.status == 0);
    CHECK(nlohmann::json::parse(reordered.out).at("levels") == plan.at("levels"));
    CHECK(read_text(model.directory.path() / "out/plan.json") ==
          read_text(model.directory.path() / "k.json"));
    for (const char* planning : {"--levels 0.5", "--grid 16", "--depth"})
      CHECK(elastify(fmt::format("reorder {} --widths {}/k.json {} -o {}/x", ordered, base, planning, base))
                .status == 2);
    CHECK(elastify(fmt::format("verify {}/out --against {}", base, model.path.string())).status == 0);

    // The reordered model has its units in another order.
    const Outcome mixed = elastify(
        fmt::format("reorder {0}/out --profile {0}/p.h5 --metric gram --levels 0.6 --grid 8 -o {0}/y", base));
    CHECK(mixed.status == 2);
    CHECK(mixed.err.find("p.h5: the units of the measured model are in their original order") !=
          std::string::npos);
    CHECK(elastify(fmt::format("plan {0}/out --profile {0}/p.h5 --metric gram --plan dp+kl --data self "
                               "--levels 0.6 --grid 8 -o {0}/y.json",
                               base))
              .status == 2);
    CHECK(elastify(fmt::format("profile {0}/out --data self --tokens 128 --seq 16 -o {0}/own.h5", base))
              .status == 0);
    CHECK(elastify(fmt::format("reorder {0}/out --profile {0}/own.h5 --levels 0.6 --grid 8 -o {0}/y", base))
              .status == 0);
  }

  TEST_CASE(
      "cli: export --imatrix writes importance matrices that verify proves and that count as no level") {
    const TinyModel model;
    const fs::path base = model.directory.path(), artifact = base / "art";
    Imatrix imatrix;
    for (const TensorSpec& tensor : test::make_tiny_spec("llama").tensors)
      if (site_of(tensor.role))
        imatrix.entries[tensor.gguf_name] = {
            std::vector<float>(static_cast<size_t>(tensor.shape.back()), 2.0F), 4};
    save_imatrix(imatrix, base / "source.gguf");
    CHECK(elastify(fmt::format("reorder {} --metric magnitude --levels 0.6 --grid 8 -o {}/out",
                               model.path.string(), base.string()))
              .status == 0);
    const auto export_with = [&](const char* file) {
      return elastify(
          fmt::format("export {0}/out --type f32 --imatrix {0}/{1} -o {0}/art", base.string(), file));
    };
    const Outcome exported = export_with("source.gguf");
    CAPTURE(exported.err);
    CHECK(exported.out.find("with imatrix-060.gguf") != std::string::npos);
    CHECK(names_in(artifact) == std::vector<std::string>{"full.gguf", "imatrix-060.gguf", "imatrix.gguf",
                                                         "level-060.gguf", "manifest.json", "permutation.h5",
                                                         "plan.json"});
    CHECK(elastify("inspect " + artifact.string())
              .out.find("importance matrices imatrix.gguf, imatrix-060.gguf") != std::string::npos);
    const std::string verify = fmt::format("verify {} --against {}", artifact.string(), model.path.string());
    const Outcome proved = elastify(verify);
    CHECK(proved.status == 0);
    CHECK(proved.out.find("4 files") != std::string::npos);
    const Outcome absent = elastify(fmt::format("eval {} --level 0.3 --data x", artifact.string()));
    CHECK(absent.err.find("it holds full.gguf, level-060.gguf\n") != std::string::npos);
    fs::copy_file(artifact / "imatrix.gguf", artifact / "imatrix-060.gguf",
                  fs::copy_options::overwrite_existing);
    const Outcome refuted = elastify(verify);
    CHECK(refuted.status == 1);
    CHECK(refuted.out.find("imatrix-060.gguf: expected ") != std::string::npos);

    fs::copy_file(artifact / "imatrix.gguf", base / "moved.gguf");
    imatrix.entries["blk.1.ffn_down.weight"].sum_squares.pop_back();
    save_imatrix(imatrix, base / "other.gguf");
    fs::remove_all(artifact);
    for (const auto& [file, message] :
         {std::pair("moved.gguf", "moved.gguf: belongs to a reordered model"),
          std::pair("other.gguf", "other.gguf: blk.1.ffn_down.weight: expected 64 columns, got 63"),
          std::pair("none.gguf", "none.gguf: ")}) {
      const Outcome refused = export_with(file);
      CAPTURE(refused.err);
      CHECK(refused.status == 1);
      CHECK(refused.err.find(message) != std::string::npos);
      CHECK_FALSE(fs::exists(artifact));
    }
  }

  TEST_CASE("cli: sweep prints a table or one object, writes its files, and refuses a bad grid by its line") {
    const TinyModel model;
    const fs::path base = model.directory.path();
    write_text(base / "sweep.yaml", fmt::format("model: {0}/model\noutput: {0}/out\npreset: none\n"
                                                "profile: {{data: self, tokens: 64, seq: 16}}\n"
                                                "eval: {{data: self, tokens: 64, seq: 16}}\n"
                                                "reorder: {{levels: [0.6], grid: 8}}\n"
                                                "grid:\n  reorder.metric: [magnitude, random]\n",
                                                base.string()));
    const Outcome table = elastify(fmt::format("sweep {}/sweep.yaml", base.string()));
    CAPTURE(table.err);
    CHECK(table.status == 0);
    CHECK(table.out.find("metric") == 0);
    CHECK(table.out.find("out/sweep.csv") != std::string::npos);
    CHECK(table.err.find("point 2/2 (random)") != std::string::npos);
    CHECK(names_in(base / "out") == std::vector<std::string>{".points", ".profiles", "config.json",
                                                             "sweep.csv", "sweep.json", "sweep.svg"});
    const std::string csv = read_text(base / "out/sweep.csv");
    const Outcome again = elastify(fmt::format("sweep {}/sweep.yaml --json", base.string()));
    CHECK(nlohmann::json::parse(again.out).at("points").size() == 2);
    CHECK(again.err.find("point 1/2") == std::string::npos);
    CHECK(read_text(base / "out/sweep.csv") == csv);

    // Common flags also override the file.
    const Outcome seeded = elastify(fmt::format("sweep {}/sweep.yaml --seed 3 --threads 1", base.string()));
    CHECK(seeded.status == 0);
    const auto resolved = nlohmann::json::parse(read_text(base / "out/config.json"));
    CHECK(resolved.at("seed") == 3);
    CHECK(resolved.at("threads") == 1);
    CHECK(read_text(base / "out/sweep.csv") != csv);
    CHECK(elastify(fmt::format("sweep {}/sweep.yaml --device nowhere", base.string())).status != 0);

    const Outcome bad =
        elastify(fmt::format("sweep {}/sweep.yaml --set grid.reorder.metrc=[taylor]", base.string()));
    CHECK(bad.status == 2);
    CHECK(bad.out.empty());
    CHECK(bad.err.find("unknown key 'grid.reorder.metrc'") != std::string::npos);
    const Outcome run = elastify(fmt::format("run {}/sweep.yaml", base.string()));
    CHECK(run.status == 2);
    CHECK(run.err.find("elastify sweep") != std::string::npos);
  }

  TEST_CASE("cli: an existing output is refused without --force and replaced with it") {
    const TinyModel model;
    const std::string command = fmt::format("reorder {} --metric magnitude --levels 0.6 --grid 8 -o {}/out",
                                            model.path.string(), model.directory.path().string());
    CHECK(elastify(command).status == 0);
    const Outcome again = elastify(command);
    CHECK(again.status == 2);
    CHECK(again.err.find("exists already") != std::string::npos);
    CHECK(again.err.find("--force") != std::string::npos);
    CHECK(elastify(command + " --force").status == 0);
    CHECK(names_in(model.directory.path()) == std::vector<std::string>{"model", "out"});
  }

  TEST_CASE("cli: --force replaces only what elastify wrote, and never an input") {
    const TinyModel model;
    const std::string at = model.directory.path().string(), source = model.path.string();
    const std::string reorder = fmt::format("reorder {} --metric magnitude --levels 0.6 --grid 8", source);
    const auto refused = [&](const std::string& command, const std::string& words) {
      const Outcome outcome = elastify(command + " --force");
      CAPTURE(command);
      CAPTURE(outcome.err);
      CHECK(outcome.status == 2);
      CHECK(outcome.err.find(words) != std::string::npos);
    };
    REQUIRE(elastify(reorder + fmt::format(" -o {}/r", at)).status == 0);
    REQUIRE(elastify(fmt::format("export {0}/r --type f32 -o {0}/a", at)).status == 0);
    REQUIRE(elastify(fmt::format("plan {} --levels 0.6 --grid 8 -o {}/plan.json", source, at)).status == 0);

    refused(reorder + " -o " + source, "is the input");
    refused(reorder + " -o " + at, "contains the input");
    refused(reorder + fmt::format(" -o {}/inside", source), "lies in the input");
    refused(fmt::format("reorder {0} --metric magnitude --widths {1}/plan.json -o {1}/plan.json", source, at),
            "is the input");
    refused(fmt::format("export {0}/r --type f32 -o {0}/r", at), "is the input");
    refused(fmt::format("profile {0} --metrics magnitude -o {0}/config.json", source), "lies in the input");

    fs::create_directory(model.directory / "precious");
    write_text(model.directory / "precious/thesis.txt", "mine");
    write_text(model.directory / "a/thesis.txt", "mine");
    write_text(model.directory / "notes.json", "{}");
    fs::create_directory_symlink(model.directory / "r", model.directory / "link");
    refused(fmt::format("export {0}/r --type f32 -o {0}/precious", at), "elastify did not write this");
    refused(fmt::format("export {0}/r --type f32 -o {0}/a", at), "contains thesis.txt");
    refused(fmt::format("export {0}/r --type f32 -o {0}/link", at), "is the input");
    refused(reorder + fmt::format(" -o {}/link", at), "is a symbolic link");
    refused(fmt::format("plan {} --levels 0.6 --grid 8 -o {}/notes.json", source, at),
            "elastify did not write this");
    CHECK(read_text(model.directory / "precious/thesis.txt") == "mine");
    CHECK(read_text(model.directory / "a/thesis.txt") == "mine");
    CHECK(read_text(model.directory / "notes.json") == "{}");

    refused(reorder + fmt::format(" -o {}/link/", at), "is a symbolic link");
    REQUIRE(elastify(fmt::format("export {0}/r --hf -o {0}/h", at)).status == 0);
    write_text(model.directory / "h/level-060/tokenizer.json", "mine");
    refused(fmt::format("export {0}/r --hf -o {0}/h", at), "contains level-060/tokenizer.json");
    fs::create_directories(model.directory / "r/repairs/level-060");
    write_text(model.directory / "r/repairs/level-060/adapter_config.json", "mine");
    refused(reorder + fmt::format(" -o {}/r", at), "contains repairs/level-060/adapter_config.json");
    fs::remove_all(model.directory / "r/repairs");

    fs::remove(model.directory / "a/thesis.txt");
    const Outcome artifact = elastify(fmt::format("export {0}/r --type f32 -o {0}/a --force", at));
    CHECK(artifact.status == 0);
    CHECK(artifact.err.find("replaces an artifact") != std::string::npos);
    CHECK(elastify(reorder + fmt::format(" -o {}/r --force", at)).err.find("replaces a reordered model") !=
          std::string::npos);
    CHECK(elastify(fmt::format("plan {} --levels 0.6 --grid 8 -o {}/plan.json --force", source, at))
              .err.find("replaces a plan") != std::string::npos);
  }

  TEST_CASE("cli: an output that another process is writing is refused") {
    const TinyModel model;
    const std::string output = (model.directory / "out").string();
    const std::string command =
        fmt::format("reorder {} --metric magnitude --levels 0.6 --grid 8 -o {}", model.path.string(), output);
    {
      const OutputLock lock(output);
      const Outcome outcome = elastify(command);
      CHECK(outcome.status == 2);
      CHECK(outcome.err.find(fmt::format("{}: process {} is writing it", output, getpid())) !=
            std::string::npos);
    }
    CHECK(elastify(command).status == 0);
    CHECK(names_in(model.directory.path()) == std::vector<std::string>{"model", "out"});
  }

  TEST_CASE(
      "cli: --quiet prints nothing but warnings and errors, and names that are not UTF-8 go into JSON") {
    const TinyModel model;
    CHECK(elastify(fmt::format("inspect {} --quiet", model.path.string())).out.empty());
    const std::string name = (model.directory / "caf\xe9.json").string();
    const Outcome planned =
        elastify(fmt::format("plan {} --levels 0.6 --grid 8 -o '{}' --json", model.path.string(), name));
    CAPTURE(planned.err);
    CHECK(planned.status == 0);
    CHECK(nlohmann::json::parse(planned.out).contains("levels"));
  }

  TEST_CASE("cli: unfinished work does not replace a directory that elastify did not write") {
    const TinyModel model;
    const std::string at = model.directory.path().string();
    fs::create_directory(model.directory / "p.h5.partial");
    write_text(model.directory / "p.h5.partial/thesis.txt", "mine");
    const Outcome outcome = elastify(fmt::format(
        "profile {} --data self --tokens 64 --seq 16 -o {}/p.h5 --force", model.path.string(), at));
    CAPTURE(outcome.err);
    CHECK(outcome.status == 2);
    CHECK(outcome.err.find("contains what elastify did not write") != std::string::npos);
    CHECK(read_text(model.directory / "p.h5.partial/thesis.txt") == "mine");
  }

  TEST_CASE("cli: a disk that is full leaves nothing behind and names the file") {
    const TinyModel model;
    const std::string base = model.directory.path().string();
    // With a file-size limit, write() fails as on a full disk.
    const Outcome full = elastify(fmt::format("reorder {} --metric magnitude --levels 0.6 --grid 8 -o {}/out",
                                              model.path.string(), base),
                                  "trap '' XFSZ; ulimit -f 16;");
    CAPTURE(full.err);
    CHECK(full.status == 1);
    CHECK(full.err.find("model.safetensors: cannot write: ") != std::string::npos);
    CHECK(names_in(model.directory.path()) == std::vector<std::string>{"model"});
  }

  TEST_CASE("cli: an output that cannot be written is refused") {
    const TinyModel model;
    const Outcome outcome = elastify(fmt::format(
        "reorder {} --metric magnitude --levels 0.6 --grid 8 -o /proc/nothing/out", model.path.string()));
    CHECK(outcome.status == 1);
    CHECK(outcome.err.find("/proc/nothing") != std::string::npos);
  }

  TEST_CASE("cli: an interrupt ends the work, leaves nothing behind, and the command can be given again") {
    if (!test::has_shared_data()) return;
    const test::TemporaryDirectory directory;
    const std::string model = (test::shared_data() / "models/stories3M/stories3M-q80.bin").string();
    const std::string command =
        fmt::format("profile {} --data self --tokens 200000 -o {}/p.h5", model, directory.path().string());
    for (const char* signal : {"INT", "HUP"}) {
      const Outcome stopped = elastify(command, fmt::format("timeout -s {} 3", signal));
      CAPTURE(stopped.err);
      CHECK(stopped.err.find("interrupted") != std::string::npos);
      CHECK(names_in(directory.path()).empty());
    }
    CHECK(elastify(
              fmt::format("profile {} --data self --tokens 512 -o {}/p.h5", model, directory.path().string()))
              .status == 0);
    CHECK(names_in(directory.path()) == std::vector<std::string>{"p.h5"});
  }
}

}  // namespace
}  // namespace elastify
