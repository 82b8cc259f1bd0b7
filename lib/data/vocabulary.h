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

/// The role of a token. The values are those of GGUF's tokenizer.ggml.token_type.
enum class TokenType : int32_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

/// A tokenizer as data, independent of the file it came from: sentencepiece tokenizer.model, Hugging Face
/// tokenizer.json (+ tokenizer_config.json), GGUF metadata, or llama2.c tokenizer.bin.
struct Vocabulary {
  TokenizerKind kind = TokenizerKind::kSentencePiece;
  std::string pre;  ///< GGUF's tokenizer.ggml.pre: "llama-bpe", "gpt-2", "qwen2", "smollm", "default"
  std::vector<std::string>
      tokens;                    ///< in the notation of the file: U+2581 for space (SPM), GPT-2 bytes (BPE)
  std::vector<float> scores;     ///< SPM only; one per token
  std::vector<TokenType> types;  ///< one per token
  std::vector<std::string> merges;  ///< BPE only: "left right", best first
  bool ignore_merges = false;       ///< BPE: a word that is a token is not built by merges (Llama 3)
  bool nfc = false;                 ///< BPE: text is normalised to NFC first (Qwen 2); GGUF has no key for it
  std::optional<int64_t> bos, eos, unknown, padding;
  bool add_bos = false, add_eos = false;
  bool add_space_prefix = true;  ///< SPM: whether a space is put before the text
  std::string chat_template;     ///< Jinja; empty if none
  /// The bytes of the sentencepiece model file, if there was one (SPM).
  std::string sentencepiece_model;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
};

/// Returns the text that a token stands for, as bytes. The sign for a space becomes a space, GPT-2's notation
/// becomes bytes, and control, unknown and unused tokens give nothing.
/// \throws Error  if `id` is not in the vocabulary
std::string token_text(const Vocabulary& vocabulary, int64_t id);

/// SHA-256 of the whole vocabulary.
std::string digest(const Vocabulary& vocabulary);

/// Appends unused tokens "[PAD<id>]" until there are `n_tokens`. GGUF wants one token per embedding row, and
/// the number of rows is often rounded up.
/// \throws Error  if there are more tokens already
void pad_vocabulary(Vocabulary& vocabulary, int64_t n_tokens);

/// Finds and reads the tokenizer of a model. `tokenizer` is read if it is given: a directory, tokenizer.json,
/// *.model, *.bin or *.gguf. Otherwise the tokenizer is looked for in or beside `model`: a Hugging Face
/// directory's files, a GGUF's metadata, or tokenizer.bin / tok*.model / tok*.bin beside a llama2.c file.
/// \throws Error  if there is none (the hint names --tokenizer), or it is corrupt or of an unknown kind
Vocabulary load_vocabulary(const fs::path& model, const fs::path& tokenizer = {});

/// Like load_vocabulary(), but returns nothing if there is no tokenizer. Corrupt ones still throw.
std::optional<Vocabulary> find_vocabulary(const fs::path& model, const fs::path& tokenizer = {});

/// Write and read the tokenizer.* keys of a GGUF file, with the types that stock llama.cpp reads.
/// \throws Error  on writing: for a sentencepiece model that is not BPE, which llama.cpp would misread
/// \throws Error  on reading: naming the key that is missing, unknown, or of a wrong type or length
void write_gguf_keys(const Vocabulary& vocabulary, GgufMetadata& metadata);
Vocabulary read_gguf_keys(const GgufMetadata& metadata);

/// Writes the files that Hugging Face `transformers` reads: tokenizer.json (BPE) or tokenizer.model (SPM),
/// with tokenizer_config.json and special_tokens_map.json.
/// \throws Error  for a WordPiece vocabulary
void write_hf_files(const Vocabulary& vocabulary, const fs::path& directory);

}  // namespace elastify
