#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "io/gguf.h"

namespace elastify {

enum class TokenizerKind { kSentencePiece, kByteLevelBpe, kWordPiece };

/// How a token takes part; values are GGUF's tokenizer.ggml.token_type.
enum class TokenType : int32_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

/// A tokenizer as data, whatever file it came from: sentencepiece tokenizer.model, Hugging Face
/// tokenizer.json (+ tokenizer_config.json), GGUF metadata, or llama2.c tokenizer.bin.
struct Vocabulary {
  TokenizerKind kind = TokenizerKind::kSentencePiece;
  std::string pre;  ///< GGUF's tokenizer.ggml.pre: "llama-bpe", "gpt-2", "qwen2", "smollm", "default"
  std::vector<std::string>
      tokens;                    ///< in the notation of the file: U+2581 for space (SPM), GPT-2 bytes (BPE)
  std::vector<float> scores;     ///< SPM only; one per token
  std::vector<TokenType> types;  ///< one per token
  std::vector<std::string> merges;  ///< BPE only: "left right", best first
  bool ignore_merges = false;       ///< BPE: a word that is a token as a whole is that token (Llama 3)
  bool nfc = false;  ///< BPE: text is brought to Unicode's NFC first (Qwen 2); GGUF has no key for it
  std::optional<int64_t> bos, eos, unknown, padding;
  bool add_bos = false, add_eos = false;
  bool add_space_prefix = true;  ///< SPM: a space is put before the text
  std::string chat_template;     ///< Jinja; empty if none
  /// The sentencepiece model file's bytes, when there was one (SPM).
  std::string sentencepiece_model;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
};

/// The bytes of text that a token stands for: the space of a sentencepiece piece as a space, GPT-2 notation
/// as bytes, nothing for control, unknown and unused tokens.
/// \throws Error  if `id` is not in the vocabulary
std::string token_text(const Vocabulary& vocabulary, int64_t id);

/// SHA-256 of everything in it.
std::string digest(const Vocabulary& vocabulary);

/// Appends unused tokens "[PAD<id>]" until there are `n_tokens`: GGUF wants one token per embedding row, and
/// embeddings are often rounded up.
/// \throws Error  if there are more tokens than that already
void pad_vocabulary(Vocabulary& vocabulary, int64_t n_tokens);

/// Finds and reads the tokenizer of a model: `tokenizer` if given, else what lies in or beside `model` (a
/// Hugging Face directory's files, a GGUF's metadata, tokenizer.bin / tok*.model / tok*.bin beside a llama2.c
/// file). `tokenizer` may be a directory, tokenizer.json, *.model, *.bin or *.gguf.
/// \throws Error  if there is none (the hint names --tokenizer), or it is corrupt or of an unknown kind
Vocabulary load_vocabulary(const fs::path& model, const fs::path& tokenizer = {});

/// As `load_vocabulary`, or nothing where there is no tokenizer; corrupt ones still throw.
std::optional<Vocabulary> find_vocabulary(const fs::path& model, const fs::path& tokenizer = {});

/// The tokenizer.* keys of a GGUF file (and back). Types as stock llama.cpp reads them.
/// \throws Error  on writing: for a sentencepiece model that is not BPE, which llama.cpp would read wrongly;
///                on reading: naming the key, for what is missing, of a wrong type or length, or unknown
void write_gguf_keys(const Vocabulary& vocabulary, GgufMetadata& metadata);
Vocabulary read_gguf_keys(const GgufMetadata& metadata);

/// Writes what Hugging Face `transformers` reads: tokenizer.json (BPE) or tokenizer.model (SPM), with
/// tokenizer_config.json and special_tokens_map.json.
/// \throws Error  for a WordPiece vocabulary
void write_hf_files(const Vocabulary& vocabulary, const fs::path& directory);

}  // namespace elastify
