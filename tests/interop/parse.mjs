// Parses GGUF files with @huggingface/gguf, a parser that shares no code with llama.cpp or us.
//   node parse.mjs FILE.gguf...
// One JSON line per file:
//   {file, version, arch, metadata: number of keys, types: {key: type}, tensors: number,
//    shapes: {name: [ne0, ne1, ...]}, dtypes: {name: type}, offsets: {name: bytes}, data_offset}
//   or {file, error}
// Shapes are in the file's order, fastest axis first.
// Exit code 0 if all files parse, 1 if any does not, 2 on bad usage.

import {gguf, GGMLQuantizationType, GGUFValueType} from "@huggingface/gguf";

const files = process.argv.slice(2);
if (files.length === 0) {
  console.error("usage: node parse.mjs FILE.gguf...");
  process.exit(2);
}

function typeName({type, subType}) {
  const name = GGUFValueType[type];
  return subType === undefined ? name : `${name}[${GGUFValueType[subType]}]`;
}

async function parse(file) {
  const {metadata, typedMetadata, tensorInfos, tensorDataOffset} = await gguf(file, {
    allowLocalFile: true,
    typedMetadata: true,
  });
  // The parser lists three header fields among the keys.
  const header = ["version", "tensor_count", "kv_count"];
  const keys = Object.keys(metadata).filter((key) => !header.includes(key));
  if (BigInt(keys.length) !== metadata.kv_count) {
    throw new Error(`the header announces ${metadata.kv_count} keys, found ${keys.length}`);
  }
  const perTensor = (value) =>
    Object.fromEntries(tensorInfos.map((tensor) => [tensor.name, value(tensor)]));
  return {
    file,
    version: metadata.version,
    arch: metadata["general.architecture"],
    metadata: keys.length,
    types: Object.fromEntries(keys.map((key) => [key, typeName(typedMetadata[key])])),
    tensors: tensorInfos.length,
    shapes: perTensor((tensor) => tensor.shape.map(Number)),
    dtypes: perTensor((tensor) => GGMLQuantizationType[tensor.dtype]),
    offsets: perTensor((tensor) => Number(tensor.offset)),
    data_offset: Number(tensorDataOffset),
  };
}

for (const file of files) {
  try {
    console.log(JSON.stringify(await parse(file)));
  } catch (error) {
    console.log(JSON.stringify({file, error: String(error?.message ?? error)}));
    process.exitCode = 1;
  }
}
