//! Which class of `transformers` makes the tokenizer of a model folder: a family's, or none that changes what `tokenizer.json` says.
//!
//! What such a class builds is in `rebuilt`.

use colrow_models::config::Config;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;
use tokenizers::models::ModelWrapper;

/// Who builds the tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `BertTokenizer` and its like; whether it tells the texts of a pair apart.
    Bert { types: bool },
    /// `T5Tokenizer`.
    T5,
    /// `tokenizer.json` as it is.
    File,
}

impl Class {
    /// The class that `AutoTokenizer` takes: the declared one, else the family's.
    pub(super) fn of(
        config: Option<&Map<String, Value>>,
        model: &Config,
        file: &Tokenizer,
        notes: &mut Vec<String>,
    ) -> Self {
        let named = config.and_then(|config| config.get("tokenizer_class")).and_then(Value::as_str);
        let declared = named.or(model.tokenizer_class());
        let name = declared.unwrap_or(model.family().tokenizer_class);
        match name.strip_suffix("Fast").unwrap_or(name) {
            "BertTokenizer" | "ElectraTokenizer" | "MobileBertTokenizer" => Self::Bert { types: true },
            "DistilBertTokenizer" => Self::Bert { types: false },
            "T5Tokenizer" if matches!(file.get_model(), ModelWrapper::Unigram(_)) => Self::T5,
            "T5Tokenizer" => {
                notes.push(
                    "tokens are those of tokenizer.json: T5Tokenizer reads only a Unigram model; tokenizer_class = \
                     \"PreTrainedTokenizerFast\" in tokenizer_config.json says so to transformers, too"
                        .into(),
                );
                Self::File
            }
            "PreTrainedTokenizer" | "TokenizersBackend" | "PythonBackend" => Self::File,
            other => {
                notes.push(format!(
                    "tokens are those of tokenizer.json, which {other} in transformers 5 may read otherwise"
                ));
                Self::File
            }
        }
    }

    /// The special token of this name where no file gives one.
    pub(super) fn default_token(self, key: &str) -> Option<&'static str> {
        match (self, key) {
            (Self::Bert { .. }, "unk_token") => Some("[UNK]"),
            (Self::Bert { .. }, "sep_token") => Some("[SEP]"),
            (Self::Bert { .. }, "pad_token") => Some("[PAD]"),
            (Self::Bert { .. }, "cls_token") => Some("[CLS]"),
            (Self::Bert { .. }, "mask_token") => Some("[MASK]"),
            (Self::T5, "eos_token") => Some("</s>"),
            (Self::T5, "unk_token") => Some("<unk>"),
            (Self::T5, "pad_token") => Some("<pad>"),
            _ => None,
        }
    }
}
