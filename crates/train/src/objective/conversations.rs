//! Conversations and completions as texts: which columns of a file they are, and how a record becomes the text that a model reads.

use colrow_tensor::{Error, Result};
use serde_json::Value;

use crate::chat::{ChatTemplate, Conversation, Keys, Rendered, TrainOn};
use crate::data::record::{Column, Kind, Reading, Record};
use crate::data::{Counted, Example};
use crate::tasks::Task;

const MESSAGES: &str = "messages";
const PROMPT: &str = "prompt";
const COMPLETION: &str = "completion";
const INSTRUCTION: &str = "instruction";
const INPUT: &str = "input";
const OUTPUT: &str = "output";
const TOOLS: &str = "tools";

/// Columns by which a file is known to hold conversations or completions.
pub(super) const USUAL: [&str; 5] = [MESSAGES, "conversations", PROMPT, COMPLETION, INSTRUCTION];

/// What is said where the template ends no turn.
const OPEN: &str =
    "the chat template writes no special token behind the assistant's turns: the model does not learn to end them";

/// What is said of roles that are perhaps misspelt.
const ODD_ROLE: &str = "some messages have a role that few templates know,";

/// Records of conversations, rendered by a template; of a prompt and its completion that are texts, these as they are.
#[derive(Debug)]
pub struct Conversations<'a> {
    /// How the file names things.
    pub keys: &'a Keys,
    /// The model's template; without one texts alone can be read, and else this is what is wrong.
    pub template: Result<ChatTemplate, Error>,
    /// What counts; without it what is usual for a record's form.
    pub train_on: Option<TrainOn>,
    /// Texts of the tokenizer's special tokens.
    pub special: Vec<String>,
}

impl Conversations<'_> {
    fn conversation(&self, conversation: Conversation, tools: Option<Value>, usual: TrainOn) -> Result<Rendered> {
        let template = self.template.as_ref().map_err(Clone::clone)?;
        let conversation = match tools {
            Some(tools) => conversation.with_tools(tools)?,
            None => conversation,
        };
        conversation.render(template, self.train_on.unwrap_or(usual), &self.special)
    }

    /// A prompt and what follows it, as they are.
    fn completion(&self, prompt: &str, completion: &str) -> Result<Example> {
        if completion.trim().is_empty() {
            return Err(
                Error::new("the completion is empty: there is nothing to learn from it").hint("leave the row out")
            );
        }
        let text = prompt.to_owned() + completion;
        let from = if self.train_on == Some(TrainOn::All) { 0 } else { prompt.len() };
        let counted = Counted { ranges: std::iter::once(from..text.len()).collect(), whole: false };
        Ok(Example { text, counted: Some(Box::new(counted)), ..Example::default() })
    }

    fn rendered(&self, record: &mut Record, notes: &mut Vec<String>) -> Result<Example> {
        let tools = record.json(TOOLS);
        let (conversation, usual) = if let Some(messages) = record.json(MESSAGES) {
            if self.train_on == Some(TrainOn::Completion) {
                return Err(Error::usage(
                    "data.train_on: \"completion\" is for prompts and completions, found conversations",
                )
                .hint("\"last\" counts the assistant's last turn"));
            }
            (Conversation::of(messages, self.keys)?, TrainOn::Assistant)
        } else if let Some(instruction) = record.text(INSTRUCTION) {
            let input = record.text(INPUT).filter(|input| !input.trim().is_empty());
            let prompt = input.map_or(instruction.clone(), |input| format!("{instruction}\n\n{input}"));
            let answer = record.text(OUTPUT).unwrap_or_default();
            (Conversation::completed(prompt.into(), answer.into(), self.keys)?, TrainOn::Completion)
        } else {
            let missing = || Error::new("expected a prompt and a completion, found null");
            let prompt = record.json(PROMPT).ok_or_else(missing)?;
            let completion = record.json(COMPLETION).ok_or_else(missing)?;
            if let (Value::String(prompt), Value::String(completion)) = (&prompt, &completion) {
                return self.completion(prompt, completion);
            }
            (Conversation::completed(prompt, completion, self.keys)?, TrainOn::Completion)
        };
        if let Some(role) = conversation.odd_role().filter(|_| !notes.iter().any(|note| note.starts_with(ODD_ROLE))) {
            notes.push(format!(
                "{ODD_ROLE} such as {role:?}, and only what the assistant says counts; the first is in {} {}",
                record.unit, record.line
            ));
        }
        let Rendered { text, counts, open } = self.conversation(conversation, tools, usual)?;
        if open && !notes.iter().any(|note| note.starts_with(OPEN)) {
            notes.push(format!("{OPEN}; the first is in {} {}", record.unit, record.line));
        }
        Ok(Example { text, counted: Some(Box::new(Counted { ranges: counts, whole: true })), ..Example::default() })
    }
}

impl Reading for Conversations<'_> {
    fn columns(&self, found: &[&str]) -> Result<Vec<Column>> {
        let position = |name: &str| found.iter().position(|other| *other == name);
        let listed = || format!("found columns: {}", found.join(", "));
        let hint = "name the columns in the recipe: data.messages, or data.prompt and data.completion";
        let given = |name: &Option<String>, key: &str| match name {
            None => Ok(None),
            Some(name) => position(name)
                .map(Some)
                .ok_or_else(|| Error::new(format!("no column {name:?} (the recipe's {key}); {}", listed())).hint(hint)),
        };
        let keys = self.keys;
        let messages = given(&keys.messages, "data.messages")?;
        let prompt = given(&keys.prompt, "data.prompt")?;
        let completion = given(&keys.completion, "data.completion")?;
        let asked = messages.is_some() || prompt.is_some() || completion.is_some();
        let usual = |name: &str| position(name).filter(|_| !asked);
        let json = |role, place| Column::new(role, found, place, Kind::Json { required: true });
        let text = |role, place| Column::new(role, found, place, Kind::Text);
        let tools = position(TOOLS).map(|place| Column::new(TOOLS, found, place, Kind::Json { required: false }));
        let value = Kind::Value { required: false, exact: false };
        let input = || position(INPUT).map(|place| Column::new(INPUT, found, place, value));
        let columns = if let Some(place) = messages.or(usual(MESSAGES)).or(usual("conversations")) {
            vec![Some(json(MESSAGES, place)), tools]
        } else if let (Some(prompt), Some(completion)) =
            (prompt.or(position(PROMPT)), completion.or(position(COMPLETION)))
        {
            vec![Some(json(PROMPT, prompt)), Some(json(COMPLETION, completion)), tools]
        } else if let (Some(instruction), Some(output)) = (usual(INSTRUCTION), usual(OUTPUT)) {
            vec![Some(text(INSTRUCTION, instruction)), input(), Some(text(OUTPUT, output)), tools]
        } else {
            let what = "expected the columns messages, or conversations, or prompt and completion, or instruction and output, for task chat, ";
            let hint = if position("text").is_some() { "plain texts are read by task = \"text\"" } else { hint };
            return Err(Error::new(what.to_owned() + &listed()).hint(hint));
        };
        let columns: Vec<Column> = columns.into_iter().flatten().collect();
        for Column { name, .. } in &columns {
            if found.iter().filter(|other| *other == name).count() > 1 {
                return Err(Error::new(format!("two columns are called {name:?}, and which is meant cannot be known"))
                    .hint("rename or leave out one of them"));
            }
        }
        Ok(columns)
    }

    fn example(&self, mut record: Record, notes: &mut Vec<String>) -> Result<Example> {
        let (line, row) = (record.line, record.row);
        self.rendered(&mut record, notes).map(|example| Example { line, row, ..example })
    }

    fn sometimes(&self) -> &[&str] {
        &[TOOLS, INPUT]
    }

    fn lines(&self) -> Result<Column> {
        Err(Error::new("expected conversations, found lines of text alone")
            .hint("give a .jsonl or .parquet file with a column messages; plain texts are read by task = \"text\""))
    }

    fn may_read(&self, name: &str) -> bool {
        USUAL.contains(&name) || name == OUTPUT
    }

    fn task(&self) -> Task {
        Task::Chat
    }
}
