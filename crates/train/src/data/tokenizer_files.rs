//! From a model folder to the tokenizer that `transformers` makes of it.
//!
//! `AutoTokenizer` (version 5) does not use `tokenizer.json` as it stands where the class is one of a family's: `BertTokenizer` takes its
//! vocabulary and builds normalizer, splitting and special tokens anew from `tokenizer_config.json` and the class's defaults, and so does
//! `T5Tokenizer`. (Version 4 kept the file's parts, but for the settings of BERT's normalizer.) Other classes use the file.

mod class;
mod companions;
mod rebuilt;

use std::collections::BTreeMap;
use std::path::Path;

use colrow_models::checkpoint::names::TOKENIZER_FILE;
use colrow_models::config::Config;
use colrow_models::files;
use colrow_tensor::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{AddedToken, Tokenizer};

use self::companions::Companions;
use super::bpe_dropout::BpeDropout;
use super::quietly::quietly;
use super::tokenizer_limits;

/// More than any `tokenizer.json` needs: those with a million tokens have some 50 MB.
const MOST_BYTES: u64 = 1 << 30;

/// A tokenizer without padding, truncation and special tokens, and what else of its files changes tokens.
pub(super) struct Built {
    pub(super) tokenizer: Tokenizer,
    /// What puts special tokens around texts. It is not in the tokenizer, which would also use it without them, before texts are cut.
    pub(super) around: Option<PostProcessorWrapper>,
    /// The end at which a long text is cut.
    pub(super) side: TruncationDirection,
    /// Whether the model is told which text of a pair a token is from.
    pub(super) types: bool,
    /// Most tokens that the model was made for, where the files say it.
    pub(super) longest: Option<usize>,
    /// The token that stands for what is not in the vocabulary.
    pub(super) unknown: Option<u32>,
    /// What leaves out merges in training.
    pub(super) dropout: Option<BpeDropout>,
    /// Special tokens that have a name, such as `eos_token`.
    pub(super) named: BTreeMap<&'static str, String>,
    /// What the user should know: which file decided.
    pub(super) notes: Vec<String>,
}

/// What of `tokenizer.json` the library does not tell.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Vec<Numbered>,
    model: DocumentModel,
}

#[derive(Deserialize)]
struct DocumentModel {
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    unk_id: Option<u32>,
}

#[derive(Deserialize)]
struct Numbered {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// Reads the tokenizer in `dir`, as `transformers` does for a model of this configuration.
///
/// # Errors
/// A file that is missing, damaged, or not a tokenizer's.
pub(super) fn build(dir: &Path, model: &Config) -> Result<Built> {
    let path = dir.join(TOKENIZER_FILE);
    let at = |why: String| Error::new(format!("cannot be read as a tokenizer.json: {why}")).at(path.display());
    let bytes = read(&path)?.ok_or_else(|| {
        Error::new("no such file").at(path.display()).hint(
            "a model folder needs the tokenizer.json of its fast tokenizer; \
             AutoTokenizer.from_pretrained(…).save_pretrained(…) writes one",
        )
    })?;
    let document: Document = serde_json::from_slice(&bytes).map_err(|e| at(e.to_string()))?;
    tokenizer_limits::check(&document.normalizer, &document.decoder).map_err(&at)?;
    let mut file = guarded(|| Tokenizer::from_bytes(bytes)).map_err(at)?;
    let mut settings = Companions::read(dir, model, &document, &file)?;
    let side = settings.side(file.get_truncation().map(|t| t.direction), dir)?;
    guarded(|| file.with_padding(None).with_truncation(None).map(|_| ())).map_err(at)?;
    let mut unknown = document.model.unk_id.or(document.model.unk_token.and_then(|token| file.token_to_id(&token)));
    let rebuilt = guarded(|| settings.rebuild(&file, &document.normalizer)).map_err(at)?;
    let mut tokenizer = match rebuilt {
        Some((tokenizer, unk)) => {
            unknown = unk;
            settings.notes.extend(quietly(|| settings.overruled(&file, &tokenizer)).flatten());
            tokenizer
        }
        None => {
            guarded(|| Ok(file.add_tokens(&settings.added))).map_err(at)?;
            file
        }
    };
    tokenizer.set_encode_special_tokens(settings.flag("split_special_tokens").unwrap_or(false));
    let (types, longest) = (settings.types(), settings.longest());
    let dropout = guarded(|| without_dropout(&mut tokenizer)).map_err(at)?;
    let around = tokenizer.get_post_processor().cloned();
    tokenizer.with_post_processor(None::<PostProcessorWrapper>);
    let named = settings.named.into_iter().map(|(name, token)| (name, token.content)).collect();
    Ok(Built { tokenizer, around, side, types, longest, unknown, dropout, named, notes: settings.notes })
}

/// Runs the library; its errors and panics in words.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    quietly(work).unwrap_or_else(|| Err("the file contradicts itself".into())).map_err(|e| e.to_string())
}

/// Switches off the dropout of a BPE, and returns it.
fn without_dropout(tokenizer: &mut Tokenizer) -> tokenizers::Result<Option<BpeDropout>> {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return Ok(None) };
    let (dropout, mut bpe) = (BpeDropout::of(bpe)?, bpe.clone());
    bpe.dropout = None;
    tokenizer.with_model(bpe);
    Ok(dropout)
}

/// The bytes of a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match files::read(path, MOST_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::from(e).at(path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokeniser::tests::{examples, load_files, model};
    use super::*;
    use crate::data::Tokeniser;
    use serde_json::json;
    use std::fs;

    pub(super) fn golden() -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokenizers.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    pub(super) fn of(case: &Value) -> Tokeniser {
        let files: Vec<(&str, Vec<u8>)> = case["files"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, content)| (name.as_str(), content.to_string().into_bytes()))
            .collect();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        load_files(&files, &model(case["files"]["config.json"]["model_type"].as_str().unwrap(), 1000, 2)).unwrap()
    }

    fn numbers(json: &Value) -> Vec<u32> {
        json.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
    }

    #[test]
    fn same_tokens_as_transformers() {
        let golden = golden();
        let mut wrong = Vec::new();
        for case in golden["cases"].as_array().unwrap() {
            let tokeniser = of(case);
            let mut rows = case["rows"].as_array().unwrap().iter();
            for length in numbers(&golden["lengths"]) {
                for text in golden["texts"].as_array().unwrap() {
                    let example = examples(&[(text[0].as_str().unwrap(), text[1].as_str())]);
                    let want = rows.next().unwrap();
                    let (ids, types) = match tokeniser.tokenise(&example, None, length as usize) {
                        Ok(set) => (set.ids, set.types.iter().map(|&kind| u32::from(kind)).collect()),
                        // an empty sequence is refused here
                        Err(_) => (vec![], vec![]),
                    };
                    if (&ids, &types) != (&numbers(&want["ids"]), &numbers(&want["types"])) {
                        wrong.push(format!("{}, {length}, {text}: {ids:?} {types:?}, there {want}", case["name"]));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// What `transformers` makes of texts with the tokenizer of this case, after `change`.
    pub(super) fn changed(name: &str, change: impl Fn(&mut Value)) -> Result<Vec<u32>> {
        let golden = golden();
        let mut files =
            golden["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap()["files"].clone();
        change(&mut files);
        let files: Vec<(&String, Vec<u8>)> =
            files.as_object().unwrap().iter().map(|(name, content)| (name, content.to_string().into_bytes())).collect();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        let tokeniser = load_files(&files, &model(name.split(',').next().unwrap(), 100, 2))?;
        let long = "a".repeat(200) + "! the cat";
        Ok(tokeniser.tokenise(&examples(&[("the ﬁ cat", Some("sat")), (&long, None)]), None, 16)?.ids)
    }

    /// None of these files may end the program, take its memory or keep it; most are refused, when they are read or at a text.
    #[test]
    fn malicious_files_are_refused() {
        type Change = fn(&mut Value);
        let changes: [(&str, bool, Change); 22] = [
            ("t5", true, |f| f["normalizer"]["precompiled_charsmap"] = json!("")),
            ("t5", true, |f| f["normalizer"]["precompiled_charsmap"] = json!("/////wAAAAAAAAAA")),
            // a trie that leads out of itself
            ("t5", true, |f| f["normalizer"]["precompiled_charsmap"] = json!("BAAAAP//f/9hYgBjAA==")),
            ("t5", true, |f| f["normalizer"]["precompiled_charsmap"] = json!("AAAAAA==")),
            ("t5", true, |f| f["model"]["vocab"] = json!([])),
            ("t5", true, |f| f["model"]["vocab"] = json!([["a", "x"]])),
            ("t5", false, |f| f["model"]["unk_id"] = json!(u32::MAX)),
            ("t5, the file as it is", true, |f| f["model"]["unk_id"] = json!(u32::MAX)),
            ("bert", true, |f| f["model"]["vocab"]["cat"] = json!(u32::MAX)),
            ("bert", true, |f| f["model"]["vocab"]["cat"] = json!(1_u64 << 40)),
            ("bert", true, |f| f["added_tokens"][0]["id"] = json!(1_u64 << 40)),
            ("bert", false, |f| f["added_tokens"][0]["id"] = json!(u32::MAX)),
            ("bert", true, |f| f["model"]["vocab"] = json!({})),
            ("bert, the file as it is", false, |f| f["model"]["max_input_chars_per_word"] = json!(u64::MAX)),
            ("bert, the file as it is", true, |f| f["truncation"] = json!({"max_length": -1})),
            ("bert, the file as it is", false, |f| f["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0})),
            ("bert, the file as it is", true, |f| f["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": ""})),
            ("bert, the file as it is", true, |f| {
                f["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""})
            }),
            ("bert, the file as it is", true, |f| {
                f["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "(((a{1,999}){1,999}){1,999}){1,999}"}, "content": ""});
            }),
            // takes exponential time where nothing bounds it
            ("bert, the file as it is", false, |f| {
                f["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(?=(a*)*c)(a*)*c"}, "behavior": "Isolated", "invert": false});
            }),
            ("bert, the file as it is", true, |f| {
                let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
                f["normalizer"] = json!({"type": "Sequence", "normalizers": vec![double; 60]});
            }),
            ("bert, the file as it is", true, |f| {
                f["normalizer"] = (0..200)
                    .fold(json!({"type": "NFC"}), |inner, _| json!({"type": "Sequence", "normalizers": [inner]}));
            }),
        ];
        for (i, (name, refused, change)) in changes.into_iter().enumerate() {
            let start = std::time::Instant::now();
            let read = changed(name, |files| change(&mut files["tokenizer.json"]));
            assert!(start.elapsed().as_secs() < 10, "{i}: {name}");
            match read {
                Ok(ids) => assert!(!refused && ids.iter().all(|&id| id < 100), "{i}: {name}: {ids:?}"),
                Err(e) => {
                    assert!(e.to_string().contains("tokenizer.json") || e.to_string().contains("line"), "{i}: {e}")
                }
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.path().join(TOKENIZER_FILE)).unwrap();
        let error = Tokeniser::load(folder.path(), &model("bert", 10, 2)).unwrap_err().to_string();
        assert!(error.starts_with("expected a file"), "{error}");
    }
}
