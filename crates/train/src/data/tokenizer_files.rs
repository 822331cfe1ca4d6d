//! From a model folder to the tokenizer that `transformers` makes of it.
//!
//! `AutoTokenizer` (version 5) does not use `tokenizer.json` as it stands where the class is one of a family's: `BertTokenizer` takes its
//! vocabulary and builds normalizer, splitting and special tokens anew from `tokenizer_config.json` and the class's defaults, and so does
//! `T5Tokenizer`. (Version 4 kept the file's parts, but for the settings of BERT's normalizer.) Other classes use the file.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use colrow_models::checkpoint::names::TOKENIZER_FILE;
use colrow_models::config::Config;
use colrow_models::files;
use colrow_tensor::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{AddedToken, Model, Tokenizer};

use super::bpe_dropout::BpeDropout;
use super::quietly::quietly;
use super::tokenizer_limits;

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// More than any `tokenizer.json` needs: those with a million tokens have some 50 MB.
const MOST_BYTES: u64 = 1 << 30;

/// Special tokens that have a name, in the order in which `transformers` adds them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

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
    /// What the user should know: which file decided.
    pub(super) notes: Vec<String>,
}

/// Who builds the tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// `BertTokenizer` and its like; whether it tells the texts of a pair apart.
    Bert { types: bool },
    /// `T5Tokenizer`.
    T5,
    /// `tokenizer.json` as it is.
    File,
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

/// The tokenizer's other files, with the class that reads them.
struct Companions {
    class: Class,
    /// `tokenizer_config.json`; empty without one.
    config: Map<String, Value>,
    /// Special tokens by name.
    named: BTreeMap<&'static str, AddedToken>,
    /// Tokens beside the vocabulary, in the order in which they are added.
    added: Vec<AddedToken>,
    notes: Vec<String>,
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
    Ok(Built { tokenizer, around, side, types, longest, unknown, dropout, notes: settings.notes })
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

/// The object in a file of `dir`, if the file is there.
fn object(dir: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    let path = dir.join(name);
    let parse = |bytes: Vec<u8>| {
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(format!("expected a JSON object: {e}")).at(path.display()))
    };
    read(&path)?.map(parse).transpose()
}

/// A token as these files give it: its text, or an object with the text and how it is found.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    if let Value::String(text) = value {
        return Some(AddedToken::from(text, special));
    }
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(special);
    let plain = AddedToken::from(value.get("content")?.as_str()?, special);
    let normalized = flag("normalized").unwrap_or(plain.normalized);
    let is = |name| flag(name).unwrap_or(false);
    Some(plain.single_word(is("single_word")).lstrip(is("lstrip")).rstrip(is("rstrip")).normalized(normalized))
}

impl Companions {
    fn read(dir: &Path, model: &Config, document: &Document, file: &Tokenizer) -> Result<Self> {
        let config = object(dir, CONFIG)?;
        let mut notes = Vec::new();
        let class = class(config.as_ref(), model, file, &mut notes);
        let config = config.unwrap_or_default();
        for key in ["do_lower_case", "strip_accents", "tokenize_chinese_chars", "split_special_tokens"] {
            if let Some(other) = config.get(key).filter(|value| !value.is_boolean() && !value.is_null()) {
                let what = format!("{key}: expected true or false, found {other}");
                return Err(Error::new(what).at(dir.join(CONFIG).display()));
            }
        }
        let wrong = |key: &str, name: &str| {
            Error::new(format!("{key}: expected a token or an object with its content")).at(dir.join(name).display())
        };
        // Without added_tokens_decoder the older files count too.
        let map = if config.contains_key("added_tokens_decoder") { None } else { object(dir, SPECIAL_TOKENS)? };
        let map = map.unwrap_or_default();
        let given = |key: &str| match map.get(key).filter(|value| !value.is_null()) {
            Some(value) => Some((value, SPECIAL_TOKENS)),
            None => config.get(key).filter(|value| !value.is_null()).map(|value| (value, CONFIG)),
        };
        let mut named = BTreeMap::new();
        for key in NAMED {
            let found = match given(key) {
                Some((value, name)) => Some(token(value, true).ok_or_else(|| wrong(key, name))?),
                None => class.default_token(key).map(|text| AddedToken::from(text, true)),
            };
            named.extend(found.map(|token| (key, token)));
        }
        let mut more = Vec::new();
        for key in ["extra_special_tokens", "additional_special_tokens"] {
            if let Some((list, name)) = given(key).filter(|(list, _)| list.is_array()) {
                let list = list.as_array().into_iter().flatten();
                more = list.map(|t| token(t, true).ok_or_else(|| wrong(key, name))).collect::<Result<Vec<_>>>()?;
                break;
            }
        }
        let is_sentinel = |token: &AddedToken| token.content.contains("<extra_id_");
        if class == Class::T5 && !more.iter().any(is_sentinel) {
            let count = config.get("extra_ids").and_then(Value::as_u64).unwrap_or(100).min(1000);
            more.extend((0..count).map(|i| AddedToken::from(format!("<extra_id_{i}>"), true)));
        }

        let mut numbered: BTreeMap<u64, AddedToken> = BTreeMap::new();
        if let Some(list) = config.get("added_tokens_decoder") {
            for (id, value) in list.as_object().into_iter().flatten() {
                let found = id.parse().ok().zip(token(value, false));
                let (id, token) = found.ok_or_else(|| wrong(&format!("added_tokens_decoder.{id}"), CONFIG))?;
                numbered.insert(id, token);
            }
        } else {
            for (text, id) in object(dir, ADDED_TOKENS)?.unwrap_or_default() {
                let special = named.values().chain(&more).any(|token| token.content == text);
                numbered
                    .insert(id.as_u64().ok_or_else(|| wrong(&text, ADDED_TOKENS))?, AddedToken::from(text, special));
            }
            numbered.extend(document.added_tokens.iter().map(|t| (u64::from(t.id), t.token.clone())));
        }
        let names: HashSet<String> = named.values().map(|token| token.content.clone()).collect();
        let mut added: Vec<AddedToken> = numbered.into_values().collect();
        let mut seen: HashSet<String> = added.iter().map(|token| token.content.clone()).collect();
        if class == Class::File {
            seen.extend(file.get_added_tokens_decoder().into_values().map(|token| token.content));
        }
        let rest = NAMED.iter().filter_map(|key| named.get(key)).chain(&more);
        added.extend(rest.filter(|token| seen.insert(token.content.clone())).cloned());
        for token in &mut added {
            token.special |= names.contains(&token.content);
        }
        Ok(Self { class, config, named, added, notes })
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.config.get(key)?.as_bool()
    }

    /// The end at which texts are cut: by `tokenizer_config.json`, else as `tokenizer.json` does.
    fn side(&self, file: Option<TruncationDirection>, dir: &Path) -> Result<TruncationDirection> {
        match self.config.get("truncation_side") {
            None | Some(Value::Null) => Ok(file.unwrap_or(TruncationDirection::Right)),
            Some(side) if side == "right" => Ok(TruncationDirection::Right),
            Some(side) if side == "left" => Ok(TruncationDirection::Left),
            Some(other) => Err(Error::new(format!("truncation_side: expected \"left\" or \"right\", found {other}"))
                .at(dir.join(CONFIG).display())),
        }
    }

    fn types(&self) -> bool {
        match self.config.get("model_input_names").and_then(Value::as_array) {
            Some(names) => names.iter().any(|name| name == "token_type_ids"),
            None => self.class == Class::Bert { types: true },
        }
    }

    /// `model_max_length`, unless it is the large number that stands for none.
    fn longest(&self) -> Option<usize> {
        let length = self.config.get("model_max_length").or(self.config.get("max_len"))?.as_f64()?;
        (1.0..1e9).contains(&length).then_some(length as usize)
    }

    fn id(&self, tokenizer: &Tokenizer, name: &str) -> Option<(String, u32)> {
        let id = |key: &str| {
            let text = &self.named.get(key)?.content;
            Some((text.clone(), tokenizer.token_to_id(text)?))
        };
        id(name).or_else(|| id("unk_token"))
    }

    /// The tokenizer that the class builds of the file's vocabulary and what it has for unknown text; `None` if it uses the file.
    fn rebuild(&self, file: &Tokenizer, normalizer: &Value) -> tokenizers::Result<Option<(Tokenizer, Option<u32>)>> {
        let mut new;
        match (self.class, file.get_model()) {
            (Class::Bert { .. }, _) => {
                let unk = self.named["unk_token"].content.clone();
                let pieces: WordPiece = serde_json::from_value(json!({
                    "unk_token": unk, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                    "vocab": file.get_vocab(false),
                }))?;
                new = Tokenizer::new(pieces);
                let on = |key| self.flag(key).unwrap_or(true);
                let (lower, chinese) = (on("do_lower_case"), on("tokenize_chinese_chars"));
                new.with_normalizer(Some(BertNormalizer::new(true, chinese, self.flag("strip_accents"), lower)));
                new.with_pre_tokenizer(Some(BertPreTokenizer));
                new.add_tokens(&self.added);
                let around = self.id(&new, "sep_token").zip(self.id(&new, "cls_token"));
                let (sep, cls) = around.ok_or("there is neither a [CLS] nor a [SEP] nor a token for unknown text")?;
                new.with_post_processor(Some(BertProcessing::new(sep, cls)));
            }
            (Class::T5, ModelWrapper::Unigram(model)) => {
                let vocab: Vec<_> = model.iter().cloned().collect();
                new = Tokenizer::new(Unigram::from(vocab, Some(2), false)?);
                new.with_normalizer(charsmap(normalizer)?);
                let metaspace = Metaspace::new('▁', PrependScheme::Always, true);
                let steps: Vec<PreTokenizerWrapper> = vec![WhitespaceSplit.into(), metaspace.clone().into()];
                new.with_pre_tokenizer(Some(Sequence::new(steps)));
                new.with_decoder(Some(metaspace));
                new.add_tokens(&self.added);
                let (_, eos) = self.id(&new, "eos_token").ok_or("there is no token that ends a text")?;
                let template = TemplateProcessing::builder()
                    .try_single("$A </s>")?
                    .try_pair("$A </s> $B </s>")?
                    .special_tokens(vec![("</s>", eos)])
                    .build()?;
                new.with_post_processor(Some(template));
            }
            _ => return Ok(None),
        }
        let unknown = match new.get_model() {
            ModelWrapper::WordPiece(model) => model.token_to_id(&model.unk_token),
            _ => Some(2),
        };
        Ok(Some((new, unknown)))
    }

    /// What the class has decided otherwise than `tokenizer.json` says.
    fn overruled(&self, file: &Tokenizer, new: &Tokenizer) -> Option<String> {
        let mut differs = Vec::new();
        match (file.get_normalizer(), new.get_normalizer()) {
            (Some(NormalizerWrapper::BertNormalizer(old)), Some(NormalizerWrapper::BertNormalizer(new))) => {
                let mut compare = |key: &str, old: Option<bool>, new: Option<bool>| {
                    let text = |flag: Option<bool>| flag.map_or("null".to_owned(), |flag| flag.to_string());
                    if old != new {
                        differs.push(format!("{key} = {} (there {})", text(new), text(old)));
                    }
                };
                compare("do_lower_case", Some(old.lowercase), Some(new.lowercase));
                compare("strip_accents", old.strip_accents, new.strip_accents);
                compare("tokenize_chinese_chars", Some(old.handle_chinese_chars), Some(new.handle_chinese_chars));
            }
            (old, new) if same(&old, &new) => {}
            _ => differs.push("the normalizer".to_owned()),
        }
        if !same(&file.get_pre_tokenizer(), &new.get_pre_tokenizer()) {
            differs.push("how text is split into words".to_owned());
        }
        let model = |tokenizer: &Tokenizer| match tokenizer.get_model() {
            ModelWrapper::WordPiece(m) => {
                Some((m.unk_token.clone(), m.continuing_subword_prefix.clone(), m.max_input_chars_per_word))
            }
            ModelWrapper::Unigram(m) => Some((String::new(), String::new(), usize::from(m.byte_fallback()))),
            _ => None,
        };
        if model(file) != model(new) {
            differs.push("the word pieces' settings".to_owned());
        }
        let around = |tokenizer: &Tokenizer, pair: bool| -> Option<(Vec<u32>, Vec<u32>)> {
            let probe = || new.encode_fast("a", false).ok();
            let made = tokenizer.post_process(probe()?, if pair { probe() } else { None }, true).ok()?;
            Some((made.get_ids().to_vec(), made.get_type_ids().to_vec()))
        };
        let types = |made: Option<(Vec<u32>, Vec<u32>)>| made.map(|(ids, types)| (ids, self.types().then_some(types)));
        if [false, true].iter().any(|&pair| types(around(file, pair)) != types(around(new, pair))) {
            differs.push("the special tokens around a text".to_owned());
        }
        let by = match self.class {
            Class::Bert { .. } => "BertTokenizer",
            _ => "T5Tokenizer",
        };
        let source = if self.config.is_empty() { "its defaults, for want of a tokenizer_config.json" } else { CONFIG };
        (!differs.is_empty()).then(|| {
            format!(
                "tokens are those of {by} in transformers 5, which takes from {source} and not from tokenizer.json: {}",
                differs.join(", ")
            )
        })
    }
}

impl Class {
    fn default_token(self, key: &str) -> Option<&'static str> {
        match (self, key) {
            (Class::Bert { .. }, "unk_token") => Some("[UNK]"),
            (Class::Bert { .. }, "sep_token") => Some("[SEP]"),
            (Class::Bert { .. }, "pad_token") => Some("[PAD]"),
            (Class::Bert { .. }, "cls_token") => Some("[CLS]"),
            (Class::Bert { .. }, "mask_token") => Some("[MASK]"),
            (Class::T5, "eos_token") => Some("</s>"),
            (Class::T5, "unk_token") => Some("<unk>"),
            (Class::T5, "pad_token") => Some("<pad>"),
            _ => None,
        }
    }
}

/// The class that `AutoTokenizer` takes: the declared one, else the family's.
fn class(config: Option<&Map<String, Value>>, model: &Config, file: &Tokenizer, notes: &mut Vec<String>) -> Class {
    let named = config.and_then(|config| config.get("tokenizer_class")).and_then(Value::as_str);
    let declared = named.or(model.tokenizer_class());
    let name = declared.unwrap_or(model.family().tokenizer_class);
    match name.strip_suffix("Fast").unwrap_or(name) {
        "BertTokenizer" | "ElectraTokenizer" | "MobileBertTokenizer" => Class::Bert { types: true },
        "DistilBertTokenizer" => Class::Bert { types: false },
        "T5Tokenizer" if matches!(file.get_model(), ModelWrapper::Unigram(_)) => Class::T5,
        "T5Tokenizer" => {
            notes.push(
                "tokens are those of tokenizer.json: T5Tokenizer reads only a Unigram model; tokenizer_class = \
                 \"PreTrainedTokenizerFast\" in tokenizer_config.json says so to transformers, too"
                    .into(),
            );
            Class::File
        }
        "PreTrainedTokenizer" | "TokenizersBackend" | "PythonBackend" => Class::File,
        other => {
            notes.push(format!(
                "tokens are those of tokenizer.json, which {other} in transformers 5 may read otherwise"
            ));
            Class::File
        }
    }
}

/// The file's table of characters, alone or first of its kind in a sequence.
fn charsmap(normalizer: &Value) -> tokenizers::Result<Option<NormalizerWrapper>> {
    let steps = normalizer.get("normalizers").and_then(Value::as_array);
    let mut steps = steps.map_or(std::slice::from_ref(normalizer), Vec::as_slice).iter();
    let found = steps.find(|step| step.get("type").is_some_and(|kind| kind == "Precompiled"));
    // From text: the library borrows the table from it.
    Ok(found.map(|step| serde_json::from_str(&step.to_string())).transpose()?)
}

/// Whether two parts are written alike.
fn same(a: &impl serde::Serialize, b: &impl serde::Serialize) -> bool {
    serde_json::to_value(a).ok() == serde_json::to_value(b).ok()
}

#[cfg(test)]
mod tests {
    use super::super::tokenise::tests::{examples, load_files, model};
    use super::*;
    use crate::data::Tokeniser;
    use std::fs;

    fn golden() -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokenizers.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn of(case: &Value) -> Tokeniser {
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

    #[test]
    fn it_is_said_which_file_decided() {
        let golden = golden();
        let notes = |name: &str| {
            let case = golden["cases"].as_array().unwrap().iter().find(|case| case["name"] == name);
            of(case.unwrap()).notes().join("\n")
        };
        for quiet in ["bert", "bert, cut at the left", "bert, the file as it is", "t5"] {
            assert_eq!(notes(quiet), "", "{quiet}");
        }
        let list = |name: &str| notes(name).split_once(": ").unwrap().1.to_owned();
        assert_eq!(
            notes("bert, do_lower_case off"),
            "tokens are those of BertTokenizer in transformers 5, which takes from tokenizer_config.json and not from tokenizer.json: \
             do_lower_case = false (there true)"
        );
        assert!(notes("bert, lower case as the file says not to").contains("from its defaults, for want of a"));
        assert_eq!(list("bert, strip_accents off"), "strip_accents = false (there null)");
        assert_eq!(list("bert, no post-processor"), "the special tokens around a text");
        assert_eq!(
            list("bert, other parts"),
            "the normalizer, how text is split into words, the word pieces' settings"
        );
        assert_eq!(list("t5, more steps"), "the normalizer, how text is split into words");
    }

    /// What `transformers` makes of texts with the tokenizer of this case, after `change`.
    fn changed(name: &str, change: impl Fn(&mut Value)) -> Result<Vec<u32>> {
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

    #[test]
    fn settings_of_another_kind_are_refused_by_name() {
        for (key, value, name) in [
            ("do_lower_case", json!("no"), CONFIG),
            ("strip_accents", json!(1), CONFIG),
            ("truncation_side", json!("up"), CONFIG),
            ("cls_token", json!(3), CONFIG),
            ("added_tokens_decoder", json!({"-1": {"content": "x"}}), CONFIG),
            ("added_tokens_decoder", json!({"1": {"text": "x"}}), CONFIG),
        ] {
            let error = changed("bert", |files| files[CONFIG] = json!({key: value})).unwrap_err().to_string();
            assert!(error.starts_with(key) && error.contains(name), "{error}");
        }
        let error = changed("bert", |files| files[CONFIG] = json!([])).unwrap_err().to_string();
        assert!(error.starts_with("expected a JSON object: ") && error.contains(CONFIG), "{error}");
        assert!(changed("bert", |files| files[CONFIG] = json!({"extra_ids": 1e18, "model_max_length": 1e30})).is_ok());
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
