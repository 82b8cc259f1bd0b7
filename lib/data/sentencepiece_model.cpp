#include "data/sentencepiece_model.h"

#include <bit>
#include <cstring>
#include <limits>

#include "base/error.h"

namespace elastify {
namespace {

// Wire format of protocol buffers: a message is a list of fields. A field is a varint key (number * 8 + kind)
// and a value of that kind.
enum WireKind : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  uint64_t number = 0;
  uint64_t kind = 0;
  uint64_t integer = 0;    ///< kVarint, kFixed32, kFixed64
  std::string_view bytes;  ///< kBytes
  size_t place = 0;        ///< offset of the field in the file
};

class WireReader {
 public:
  /// \param place  offset of `bytes` in the file
  WireReader(std::string_view bytes, size_t place) : bytes_(bytes), place_(place) {}

  bool next(Field& field) {
    if (at_ == bytes_.size()) return false;
    field = {};
    field.place = place_ + at_;
    const uint64_t key = varint();
    field.number = key >> 3;
    field.kind = key & 7;
    if (field.number == 0) fail("byte {}: not a protocol buffer field", field.place);
    switch (field.kind) {
      case kVarint:
        field.integer = varint();
        break;
      case kFixed64:
        field.integer = fixed<uint64_t>();
        break;
      case kFixed32:
        field.integer = fixed<uint32_t>();
        break;
      case kBytes:
        field.bytes = take(varint());
        break;
      default:
        fail("byte {}: unknown protocol buffer field kind {}", field.place, field.kind);
    }
    return true;
  }
  /// Offset of the last field's bytes in the file.
  size_t place_of(const Field& field) const {
    return place_ + static_cast<size_t>(field.bytes.data() - bytes_.data());
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail("byte {}: number of more than 10 bytes", place_ + at_);
  }
  template <typename T>
  T fixed() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view take(uint64_t n) {
    if (n > bytes_.size() - at_) {
      fail("byte {}: the file ends too early: {} bytes expected, {} left", place_ + at_, n,
           bytes_.size() - at_);
    }
    at_ += n;
    return bytes_.substr(at_ - n, n);
  }

  std::string_view bytes_;
  size_t place_;
  size_t at_ = 0;
};

void expect(const Field& field, WireKind kind, std::string_view name) {
  if (field.kind != kind)
    fail("byte {}: {}: expected protocol buffer field kind {}, got {}", field.place, name, +kind, field.kind);
}

namespace proto {
// sentencepiece_model.proto
enum Model : uint32_t { kPieces = 1, kTrainerSpec = 2, kNormalizerSpec = 3 };
enum Piece : uint32_t { kPiece = 1, kScore = 2, kType = 3 };
enum Trainer : uint32_t {
  kModelType = 3,
  kVocabSize = 4,
  kTreatWhitespaceAsSuffix = 24,
  kByteFallback = 35,
  kUnkId = 40,
  kBosId = 41,
  kEosId = 42,
  kPadId = 43,
  kUnkPiece = 45,
  kBosPiece = 46,
  kEosPiece = 47,
  kPadPiece = 48
};
enum Normalizer : uint32_t {
  kName = 1,
  kPrecompiledCharsmap = 2,
  kAddDummyPrefix = 3,
  kRemoveExtraWhitespaces = 4,
  kEscapeWhitespaces = 5
};
}  // namespace proto

void parse_piece(std::string_view bytes, size_t place, Vocabulary& vocabulary) {
  std::string token;
  float score = 0;
  uint64_t type = static_cast<uint64_t>(TokenType::kNormal);
  WireReader reader(bytes, place);
  for (Field field; reader.next(field);) {
    if (field.number == proto::kPiece) {
      expect(field, kBytes, "piece");
      token = field.bytes;
    } else if (field.number == proto::kScore) {
      expect(field, kFixed32, "score");
      score = std::bit_cast<float>(static_cast<uint32_t>(field.integer));
    } else if (field.number == proto::kType) {
      expect(field, kVarint, "piece type");
      type = field.integer;
    }
  }
  if (type < 1 || type > 6) fail("byte {}: piece {}: unknown type {}", place, vocabulary.size(), type);
  vocabulary.tokens.push_back(std::move(token));
  vocabulary.scores.push_back(score);
  vocabulary.types.push_back(static_cast<TokenType>(type));
}

void parse_trainer(std::string_view bytes, size_t place, SentencePieceModel& model) {
  WireReader reader(bytes, place);
  const auto id = [](const Field& field) -> std::optional<int64_t> {
    expect(field, kVarint, "special token id");
    const auto value = static_cast<int32_t>(field.integer);
    return value < 0 ? std::nullopt : std::optional<int64_t>(value);
  };
  for (Field field; reader.next(field);) {
    switch (field.number) {
      case proto::kModelType:
        expect(field, kVarint, "model type");
        if (field.integer < 1 || field.integer > 4)
          fail("byte {}: unknown model type {}", field.place, field.integer);
        model.algorithm = static_cast<SentencePieceAlgorithm>(field.integer);
        break;
      case proto::kTreatWhitespaceAsSuffix:
        model.treat_whitespace_as_suffix = field.integer != 0;
        break;
      case proto::kByteFallback:
        model.byte_fallback = field.integer != 0;
        break;
      case proto::kUnkId:
        model.vocabulary.unknown = id(field);
        break;
      case proto::kBosId:
        model.vocabulary.bos = id(field);
        break;
      case proto::kEosId:
        model.vocabulary.eos = id(field);
        break;
      case proto::kPadId:
        model.vocabulary.padding = id(field);
        break;
    }
  }
}

void parse_normalizer(std::string_view bytes, size_t place, SentencePieceModel& model) {
  WireReader reader(bytes, place);
  for (Field field; reader.next(field);) {
    switch (field.number) {
      case proto::kPrecompiledCharsmap:
        model.rewrites_characters = !field.bytes.empty();
        break;
      case proto::kAddDummyPrefix:
        model.vocabulary.add_space_prefix = field.integer != 0;
        break;
      case proto::kRemoveExtraWhitespaces:
        model.remove_extra_whitespaces = field.integer != 0;
        break;
      case proto::kEscapeWhitespaces:
        model.escape_whitespaces = field.integer != 0;
        break;
    }
  }
}

class WireWriter {
 public:
  void integer(uint32_t number, int64_t value) {
    varint(number << 3 | kVarint);
    varint(static_cast<uint64_t>(value));  // negative numbers take ten bytes, as in int32 fields
  }
  void real(uint32_t number, float value) {
    varint(number << 3 | kFixed32);
    const auto bits = std::bit_cast<uint32_t>(value);
    bytes_.append(reinterpret_cast<const char*>(&bits), sizeof bits);
  }
  void text(uint32_t number, std::string_view value) {
    varint(number << 3 | kBytes);
    varint(value.size());
    bytes_.append(value);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>(value | 0x80));
    bytes_.push_back(static_cast<char>(value));
  }
  std::string bytes_;
};

void write_piece(const Vocabulary& vocabulary, size_t i, WireWriter& model) {
  WireWriter piece;
  piece.text(proto::kPiece, vocabulary.tokens[i]);
  piece.real(proto::kScore, i < vocabulary.scores.size() ? vocabulary.scores[i] : 0);
  piece.integer(proto::kType, static_cast<int64_t>(vocabulary.types[i]));
  model.text(proto::kPieces, piece.bytes());
}

}  // namespace

bool SentencePieceModel::lines_are_independent() const {
  if (!byte_fallback || remove_extra_whitespaces || treat_whitespace_as_suffix || !escape_whitespaces ||
      rewrites_characters || algorithm != SentencePieceAlgorithm::kBpe)
    return false;
  for (const std::string& token : vocabulary.tokens) {
    if (token.size() > 1 && token.find('\n') != std::string::npos) return false;
  }
  return true;
}

SentencePieceModel parse_sentencepiece_model(std::string_view bytes) {
  SentencePieceModel model;
  Vocabulary& vocabulary = model.vocabulary;
  vocabulary.kind = TokenizerKind::kSentencePiece;
  vocabulary.pre = "default";
  vocabulary.unknown = 0;
  vocabulary.bos = 1;
  vocabulary.eos = 2;
  WireReader reader(bytes, 0);
  for (Field field; reader.next(field);) {
    if (field.number > proto::kNormalizerSpec) continue;
    expect(field, kBytes, "model");
    const size_t place = reader.place_of(field);
    if (field.number == proto::kPieces) parse_piece(field.bytes, place, vocabulary);
    if (field.number == proto::kTrainerSpec) parse_trainer(field.bytes, place, model);
    if (field.number == proto::kNormalizerSpec) parse_normalizer(field.bytes, place, model);
  }
  if (vocabulary.tokens.empty()) fail("no pieces: not a sentencepiece model");
  // The trainer's special ids count only if the model has such tokens.
  for (auto* id : {&vocabulary.unknown, &vocabulary.bos, &vocabulary.eos, &vocabulary.padding}) {
    if (!*id) continue;
    const TokenType expected = id == &vocabulary.unknown ? TokenType::kUnknown : TokenType::kControl;
    if (**id >= vocabulary.size() || vocabulary.types[static_cast<size_t>(**id)] != expected) id->reset();
  }
  vocabulary.add_bos = vocabulary.bos.has_value();
  vocabulary.sentencepiece_model = bytes;
  return model;
}

std::string to_sentencepiece_model(const Vocabulary& vocabulary) {
  WireWriter model;
  if (!vocabulary.sentencepiece_model.empty()) {
    const int64_t n_known = parse_sentencepiece_model(vocabulary.sentencepiece_model).vocabulary.size();
    if (n_known > vocabulary.size())
      fail("the sentencepiece model has {} pieces, the vocabulary only {}", n_known, vocabulary.size());
    // Concatenated messages are merged: the repeated fields of both are joined.
    for (auto i = static_cast<size_t>(n_known); i < vocabulary.tokens.size(); ++i)
      write_piece(vocabulary, i, model);
    return vocabulary.sentencepiece_model + model.bytes();
  }

  bool byte_fallback = false;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    write_piece(vocabulary, i, model);
    byte_fallback |= vocabulary.types[i] == TokenType::kByte;
  }
  WireWriter trainer;
  trainer.integer(proto::kModelType, static_cast<int64_t>(SentencePieceAlgorithm::kBpe));
  trainer.integer(proto::kVocabSize, vocabulary.size());
  trainer.integer(proto::kByteFallback, byte_fallback ? 1 : 0);
  const auto special = [&](uint32_t id_field, uint32_t piece_field, const std::optional<int64_t>& id) {
    trainer.integer(id_field, id.value_or(-1));
    if (id) trainer.text(piece_field, vocabulary.tokens[static_cast<size_t>(*id)]);
  };
  special(proto::kUnkId, proto::kUnkPiece, vocabulary.unknown);
  special(proto::kBosId, proto::kBosPiece, vocabulary.bos);
  special(proto::kEosId, proto::kEosPiece, vocabulary.eos);
  special(proto::kPadId, proto::kPadPiece, vocabulary.padding);
  model.text(proto::kTrainerSpec, trainer.bytes());
  WireWriter normalizer;
  normalizer.text(proto::kName, "identity");
  normalizer.text(proto::kPrecompiledCharsmap, {});
  normalizer.integer(proto::kAddDummyPrefix, vocabulary.add_space_prefix ? 1 : 0);
  normalizer.integer(proto::kRemoveExtraWhitespaces, 0);
  normalizer.integer(proto::kEscapeWhitespaces, 1);
  model.text(proto::kNormalizerSpec, normalizer.bytes());
  return model.bytes();
}

}  // namespace elastify
