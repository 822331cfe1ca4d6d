//! A first recipe for conversations, or for prompts and what follows them.

use std::path::Path;

use colrow_models::checkpoint::hub::{self, Needs};
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_tensor::{Error, Result};

use super::Lines;
use super::seen::columns_of;
use crate::chat::Keys;
use crate::data::record::Reading;
use crate::objective::Conversations;
use crate::tasks::Task;

/// Longest sequences of the draft, and tokens of a step.
const LENGTHS: [usize; 2] = [1024, 4096];

/// Whether a file has the columns of conversations or completions.
pub(super) fn is_in(data: &Path) -> bool {
    let Ok(columns) = columns_of(data) else { return false };
    let (keys, names) = (Keys::default(), columns.iter().map(String::as_str).collect::<Vec<_>>());
    let template = Err(Error::new("no template is needed to look at columns"));
    let reading = Conversations { keys: &keys, template, train_on: None, special: Vec::new() };
    reading.columns(&names).is_ok()
}

/// A commented recipe for them.
///
/// # Errors
/// A model that cannot be found, or that goes on with no text.
pub(super) fn draft(data: &Path, model: Option<&str>) -> Result<String> {
    if let Some(model) = model {
        let config = Config::open(&hub::resolve(model, "main", Needs::ConfigAndTokenizer)?)?;
        let family = config.family();
        if family.head != HeadKind::Causal {
            return Err(Error::usage(format!(
                "--model: expected a decoder for these conversations, found a {}",
                family.name
            ))
            .at(data.display())
            .hint("docs/chat.md says what is read as conversations; a decoder is a Llama, Mistral, Qwen or SmolLM"));
        }
    }
    let why = "colrow data RECIPE shows what of the conversations counts; docs/chat.md";
    let mut lines = Lines::new((Task::Chat, why), Some(data), (model, "HuggingFaceTB/SmolLM2-135M-Instruct"));
    let [length, step] = LENGTHS;
    for (key, comment) in [
        (format!("max_length = {length}"), "tokens; what is longer is cut at its end"),
        ("\n[train]".to_owned(), ""),
        ("epochs = 1".to_owned(), ""),
        (format!("batch_tokens = {step}"), "tokens a step"),
        ("method = \"lora\"".to_owned(), "adapters; without it all weights, and optim.lr is then about a tenth"),
        ("\n[optim]".to_owned(), ""),
        ("lr = 2e-4".to_owned(), "a small model takes more: 1e-3"),
        ("warmup = 0.1".to_owned(), "share of all steps"),
        ("\n[keep]".to_owned(), ""),
        (
            "policy = \"lean\"".to_owned(),
            "\"recompute\" keeps least, \"exact\" all; colrow plan RECIPE --memory 8GiB says what fits",
        ),
    ] {
        lines.add(key, comment);
    }
    Ok(lines.text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn conversations_are_seen_by_their_columns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.jsonl");
        for line in [
            r#"{"id": 3, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#,
            r#"{"prompt": "a", "completion": "b"}"#,
            r#"{"instruction": "a", "input": "", "output": "b"}"#,
        ] {
            std::fs::write(&path, format!("{line}\n")).unwrap();
            let text = super::super::draft(Some(&path), None).unwrap();
            let recipe = Recipe::parse(&text, "draft", &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
            recipe.check_train("draft").unwrap();
            assert_eq!((recipe.task.as_str(), recipe.data.max_length), ("chat", 1024));
            assert_eq!(recipe.output.as_deref(), Some("runs/talk"));
        }
        for other in [r#"{"text": "a", "label": "b"}"#, r#"{"instruction": "a", "label": 1}"#] {
            std::fs::write(&path, other).unwrap();
            assert!(!is_in(&path));
        }
        assert!(!is_in(&folder.path().join("absent.jsonl")));
    }
}
