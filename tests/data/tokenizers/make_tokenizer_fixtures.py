#!/usr/bin/env python3
"""Makes the tokenizer fixtures of this folder, and the ids that independent implementations encode with them.

One small byte-level BPE per pre-tokenizer that elastify knows from tokenizer.json (Hugging Face `tokenizers`), and
one sentencepiece BPE model. ids.json of each folder: the ids of every text of texts.json.

Needs: pip install tokenizers sentencepiece (made with tokenizers 0.23.3, sentencepiece 0.2.3)
"""

import json
import pathlib

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent

TRAINING_TEXT = """
Once upon a time there was a little cat who lived in a small house by the sea. Every morning the cat went down
to the water and watched the boats come home. "What have you caught today?" it asked. They'd say: nothing, 12 fish,
or 345 fish; once it was 6789, and the whole town came to see. The children laughed and the dogs ran around them.
It's been said that the cat wasn't hungry, but we've seen it eat 100 herrings, and I'll say that I'm sure you'd
have done so too. In 1999 the house was painted blue; in 2024 it's still blue, more or less.

def greet(name, times=3):
    for i in range(times):
        print(f"hello, {name}! ({i + 1}/{times})")

Die Straße führt über den Fluß, naïve café, déjà vu, señor, Übung macht den Meister. Нещо на български, что это
такое и почему. 我想在这里工作，今天天气很好。 これはテストです。한국어 시험입니다. 🚀 🦙 ✅ ½ ² ٣ ৳
The sea was calm. The sea was grey. The sea was everywhere, and the cat sat by the sea and waited for the boats.
"""

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\t\n",
    "Hello world",
    " Hello  World!",
    "The cat's boats weren't there; they'd gone, I'M sure, WE'VE seen.",
    "3", "33", "333", "3333", "33333 1,234.5 ½ ² ٣",
    "a\n \n\n  b\r\n\r\nc   ",
    "   leading and trailing   ",
    "\tindented\n\t\ttwice\n    four\n",
    "Straße naïve café déjà",
    "cafe\u0301 n\u0303 A\u030a \u212b \u0958",
    "что это такое",
    "我想在这里工作，今天",
    "🚀 (normal) 😶‍🌫️ (joined) ✅ 🦙",
    "------======= ''''''```````\"\"\"\"......!!!!!!??????",
    "x\u2028y\u0085z\u3000w\u00a0v",
    "'\u017f 'S 'll'LL",
    "a" * 100,
    "the sea the sea the sea",
    "zero\0byte",
    "<|endoftext|> is text here",
    "one<mark>two <mark> three<mark><mark>",
    "<s>not special</s> <unk> <0x41>",
]

GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")


def split(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


PRE_TOKENIZERS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(QWEN2),
    "smollm": pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]),
}


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=None) + "\n", encoding="utf-8")


def make_byte_level(name):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]
    tokenizer.decoder = decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    if name == "qwen2":
        tokenizer.add_tokens([AddedToken("<mark>", normalized=False)])
    content = json.loads(tokenizer.to_str())
    if name == "llama-bpe":
        # No merge makes these words any more, so they are found only as whole words.
        content["model"]["merges"] = content["model"]["merges"][:150]
        content["model"]["ignore_merges"] = True
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        }
    if name == "gpt-2":  # the older notation
        content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    write(folder / "tokenizer.json", content)
    write(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": {"content": "<|endoftext|>", "lstrip": False},
        "chat_template": [{"name": "tools", "template": "T"}, {"name": "default", "template": "{{ messages }}"}],
    })
    # Special tokens are text to elastify, so the reference must not know them as special either.
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
    content["post_processor"] = None
    reference = Tokenizer.from_str(json.dumps(content))
    write(folder / "ids.json", [reference.encode(text).ids for text in TEXTS])


def make_sentencepiece():
    folder = HERE / "sentencepiece"
    folder.mkdir(exist_ok=True)
    with open(folder / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TRAINING_TEXT.split("\n")),
            model_writer=file,
            model_type="bpe",
            vocab_size=520,
            byte_fallback=True,
            character_coverage=0.98,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            num_threads=1,
            minloglevel=2,
        )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    write(folder / "ids.json", [processor.encode(text) for text in TEXTS])


write(HERE / "texts.json", TEXTS)
for pre in PRE_TOKENIZERS:
    make_byte_level(pre)
make_sentencepiece()
