//! The tokenizer that a family's class of `transformers` builds anew of a file's vocabulary, and what it then has otherwise than
//! `tokenizer.json` says.

use serde_json::{Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{Model, Tokenizer};

use super::class::Class;
use super::companions::{CONFIG, Companions};

impl Companions {
    /// The tokenizer that the class builds of the file's vocabulary and what it has for unknown text; `None` if it uses the file.
    pub(super) fn rebuild(
        &self,
        file: &Tokenizer,
        normalizer: &Value,
    ) -> tokenizers::Result<Option<(Tokenizer, Option<u32>)>> {
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
    pub(super) fn overruled(&self, file: &Tokenizer, new: &Tokenizer) -> Option<String> {
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
    use super::super::tests::{golden, of};

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
}
