//! A first recipe for a decoder: for conversations, for prompts and what follows them, or for plain texts.

use std::path::Path;

use colrow_models::family::{Family, HeadKind};
use colrow_tensor::{Error, Result};

use super::seen::{TEXTS, columns_of, file_of};
use super::{Lines, quoted};
use crate::chat::Keys;
use crate::data::record::Reading;
use crate::objective::Conversations;
use crate::tasks::Task;

/// Usual names of prompts and what follows them, beside those that are known without being told.
const PROMPTS: [(&str, &str); 6] = [
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("input", "output"),
    ("source", "target"),
];

/// Longest sequences of the draft; tokens of a step are at least as many.
const LONGEST: u64 = 1024;
/// Most tokens of a step.
const MOST: u64 = 4096;
/// Steps of an epoch below which a step has fewer tokens, and there are several epochs.
const FEW: u64 = 32;
/// Bytes of a token, about.
const TOKEN: u64 = 4;

/// Whether a file has the columns of conversations or completions.
pub(super) fn are_conversations(data: &Path) -> bool {
    let Ok(columns) = columns_of(data, Task::Chat) else { return false };
    let (keys, names) = (Keys::default(), columns.iter().map(String::as_str).collect::<Vec<_>>());
    let template = Err(Error::new("no template is needed to look at columns"));
    let reading = Conversations { keys: &keys, template, train_on: None, special: Vec::new() };
    reading.columns(&names).is_ok()
}

/// The task and the keys that name its columns: prompts and what follows them, or texts, by their name or because there is no other column; none
/// of a list of texts.
fn columns(data: &Path) -> Result<(Task, Vec<(&'static str, String)>)> {
    if file_of(data, Task::Text).is_none() {
        return Err(Error::new(
            "expected a file called train with the ending jsonl, json, parquet, csv, tsv or txt, found none",
        )
        .at(data.display())
        .hint("a decoder learns from texts or conversations: give such a file"));
    }
    let columns = columns_of(data, Task::Text)?;
    let has = |name: &str| columns.iter().find(|column| column.eq_ignore_ascii_case(name)).cloned();
    if let Some((prompt, completion)) = PROMPTS.iter().find_map(|(prompt, other)| has(prompt).zip(has(other))) {
        return Ok((Task::Chat, vec![("prompt", prompt), ("completion", completion)]));
    }
    match (TEXTS.iter().find_map(|name| has(name)), &columns[..]) {
        (Some(column), _) => Ok((Task::Text, vec![("text", column)])),
        (None, []) => Ok((Task::Text, Vec::new())),
        (None, [only]) => Ok((Task::Text, vec![("text", only.clone())])),
        (None, several) => Err(Error::new(format!("expected conversations or a column of texts, found {}", several.join(", ")))
            .at(data.display())
            .hint("rename the column to \"text\", or write task = \"text\" and data.text into a recipe; docs/chat.md says what is read as conversations")),
    }
}

/// A commented recipe for them.
///
/// # Errors
/// A model of a family that goes on with no text; data without a column of texts.
pub(super) fn draft(data: Option<&Path>, model: Option<&str>, family: Option<&Family>) -> Result<String> {
    if let (Some(family), Some(data)) = (family.filter(|family| family.head != HeadKind::Causal), data) {
        return Err(Error::usage(format!(
            "--model: expected a decoder for these conversations, found a {}",
            family.name
        ))
        .at(data.display())
        .hint("docs/chat.md says what is read as conversations; a decoder is a Llama, Mistral, Qwen or SmolLM"));
    }
    let named = data.filter(|data| !are_conversations(data)).map(columns).transpose()?;
    let (task, named) = named.unwrap_or((Task::Chat, Vec::new()));
    let why = match task {
        Task::Text => "the model learns to go on with texts, of which every token counts",
        _ => "colrow data RECIPE shows what of the conversations counts; docs/chat.md",
    };
    let mut lines = Lines::new((task, why), data, (model, "HuggingFaceTB/SmolLM2-135M-Instruct"));
    for (key, column) in named {
        lines.add(format!("{key} = {}", quoted(&column)), "column of the file");
    }
    let size = data.and_then(|data| file_of(data, task)).and_then(|file| file.metadata().ok());
    let tokens = size.map_or(u64::MAX, |size| size.len() / TOKEN);
    let step = (tokens / FEW).clamp(LONGEST, MOST).next_power_of_two();
    let epochs = if tokens < FEW * step { 3 } else { 1 };
    for (key, comment) in [
        (format!("max_length = {LONGEST}"), "tokens; what is longer is cut at its end"),
        ("\n[train]".to_owned(), ""),
        (format!("epochs = {epochs}"), ""),
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
    use crate::recipe::{BatchSize, Recipe};

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
        let line = format!("{}\n", r#"{"prompt": "how long is it?", "completion": "not very long"}"#);
        for (lines, epochs, tokens) in [(60, 3, 1024), (4000, 3, 2048), (20_000, 1, 4096)] {
            std::fs::write(&path, line.repeat(lines)).unwrap();
            let text = super::super::draft(Some(&path), None).unwrap();
            let train = Recipe::parse(&text, "draft", &[]).unwrap().train;
            assert_eq!((train.epochs, train.batch), (f64::from(epochs), BatchSize::Tokens(tokens)));
        }
        for other in [r#"{"text": "a", "label": "b"}"#, r#"{"instruction": "a", "label": 1}"#] {
            std::fs::write(&path, other).unwrap();
            assert!(!are_conversations(&path));
        }
        assert!(!are_conversations(&folder.path().join("absent.jsonl")));
    }

    #[test]
    fn a_decoder_goes_on_with_plain_texts() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("decoder");
        std::fs::create_dir(&model).unwrap();
        let config = r#"{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
            "vocab_size": 9, "rms_norm_eps": 1e-5}"#;
        std::fs::write(model.join("config.json"), config).unwrap();
        std::fs::write(model.join("tokenizer.json"), "{}").unwrap();
        let name = |file: &str| folder.path().join(file);
        let drafted = |data: Option<&Path>| {
            let text = super::super::draft(data, Some(model.to_str().unwrap()))?;
            let recipe = Recipe::parse(&text, "draft", &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
            recipe.check_train("draft").unwrap();
            Ok::<_, Error>((recipe.task, recipe.data.text))
        };
        let of = |file: &str, content: &str| {
            std::fs::write(name(file), content).unwrap();
            drafted(Some(&name(file)))
        };
        let text = |column: Option<&str>| ("text".to_owned(), column.map(str::to_owned));
        assert_eq!(of("a.jsonl", "{\"id\": 1, \"text\": \"a\"}\n").unwrap(), text(Some("text")));
        assert_eq!(of("a.jsonl", "{\"story\": \"a\"}\n").unwrap(), text(Some("story")));
        assert_eq!(of("a.csv", "label,Text\n1,a\n").unwrap(), text(Some("Text")));
        assert_eq!(of("a.txt", "a\nb\n").unwrap(), text(None));
        assert_eq!(of("a.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n").unwrap().0, "chat");
        assert_eq!(of("a.csv", "Question,answer,id\na,b,1\n").unwrap().0, "chat");
        for (prompt, completion) in [
            ("query", "response"),
            ("instruction", "response"),
            ("prompt", "response"),
            ("input", "output"),
            ("source", "target"),
        ] {
            assert_eq!(of("b.csv", &format!("{completion},{prompt},text\na,b,c\n")).unwrap().0, "chat", "{prompt}");
        }
        let recipe = super::super::draft(Some(&name("a.csv")), Some(model.to_str().unwrap())).unwrap();
        assert!(recipe.contains("\nprompt = \"Question\"") && recipe.contains("\ncompletion = \"answer\""), "{recipe}");
        assert_eq!(drafted(None).unwrap().0, "chat");
        let error = drafted(Some(folder.path())).unwrap_err().to_string();
        assert!(error.starts_with("expected a file called train"), "{error}");
        let error = of("a.csv", "one,two\na,b\n").unwrap_err();
        assert!(
            error.to_string().starts_with("expected conversations or a column of texts, found one, two"),
            "{error}"
        );
    }
}
