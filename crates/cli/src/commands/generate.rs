//! `colrow generate`: texts that a model goes on with, token by token.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use colrow_models::choose::Choice;
use colrow_models::decode::Decoding;
use colrow_models::family::HeadKind;
use colrow_models::generation;
use colrow_tensor::printable::printable;
use colrow_tensor::rng::Key;
use colrow_tensor::{Code, Error, Result};
use colrow_train::chat::{ChatTemplate, Conversation, Moment, TrainOn};
use colrow_train::data::Tokeniser;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arguments::whole;
use crate::output::{self, is_standard, write_out};
use crate::saved::{ModelArgs, Used};
use crate::signals;

/// Go on with a text or a conversation, or with each of a file.
///
/// The text appears as it is made. Tokens that end it are those of the model's generation_config.json, and of a conversation the one that its
/// template writes behind an answer.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Folder of an adapter, on top of --model.
    #[arg(long, value_name = "DIR", conflicts_with = "base")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    prompt: Prompt,
    /// Most tokens of a text.
    #[arg(long, value_name = "N", default_value = "256", value_parser = whole(1..=1 << 20))]
    max_tokens: usize,
    /// Divides the logits before a token is drawn; with 0 the most likely token is taken.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true, value_parser = number(0.0, 100.0))]
    temperature: f64,
    /// Draw only among the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true, value_parser = number(0.0, 1.0))]
    top_p: f64,
    /// Draw only among so many of the most likely tokens; all with 0.
    #[arg(long, value_name = "K", default_value = "0", value_parser = whole(0..=1 << 24))]
    top_k: usize,
    /// Seed of what is drawn.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Text that ends an answer, and is left out; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// How keys and values of earlier tokens are held.
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = ["f32", "bf16", "int8"])]
    cache: String,
    /// Print a JSON line for each text.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Prompt {
    /// The text to go on with, or - for standard input.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// File of prompts: a line each, or JSON lines with a field `prompt`.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// What a user says to the model, by its chat template.
    #[arg(long, value_name = "TEXT")]
    ask: Option<String>,
    /// Conversations to answer, by the model's chat template: a JSON list of messages, or an object with `messages` (or `conversations`) and perhaps `tools`, or
    /// lines of either; - for standard input.
    #[arg(long, value_name = "FILE")]
    chat: Option<PathBuf>,
}

fn number(least: f64, most: f64) -> impl Fn(&str) -> std::result::Result<f64, String> + Clone + Send + Sync {
    move |text| {
        let found = text.parse().ok().filter(|x| (least..=most).contains(x));
        found.ok_or_else(|| format!("expected a number from {least} to {most}"))
    }
}

#[derive(Deserialize)]
struct PromptLine {
    prompt: String,
}

/// What is gone on with.
enum Given {
    /// Texts as they are.
    Texts(Vec<String>),
    /// Conversations that the assistant is to answer.
    Conversations(Vec<Conversation>),
}

impl Prompt {
    fn given(&self) -> Result<Given> {
        if let Some(text) = &self.ask {
            let messages = json!([{"role": "user", "content": text}]);
            return Ok(Given::Conversations(vec![Conversation::new(messages)?]));
        }
        match &self.chat {
            Some(path) => conversations(path).map(Given::Conversations),
            None => self.texts().map(Given::Texts),
        }
    }

    /// The texts to go on with, in their order.
    fn texts(&self) -> Result<Vec<String>> {
        if let Some(path) = &self.prompts {
            let text = read(path)?;
            let is_json = path.extension().is_some_and(|e| e == "jsonl" || e == "json" || e == "ndjson");
            let prompt = |(i, line): (usize, &str)| {
                if !is_json {
                    return Ok(line.to_owned());
                }
                let parsed: std::result::Result<PromptLine, _> = serde_json::from_str(line);
                parsed.map(|line| line.prompt).map_err(|e| {
                    Error::new(format!("expected an object with a text `prompt`: {e}"))
                        .at(format!("{}, line {}", path.display(), i + 1))
                        .hint("conversations are read by --chat")
                })
            };
            let prompts: Vec<String> = text
                .lines()
                .enumerate()
                .filter(|(_, line)| !line.trim().is_empty())
                .map(prompt)
                .collect::<Result<_>>()?;
            if prompts.is_empty() {
                return Err(Error::new("expected prompts, found none").at(path.display()));
            }
            return Ok(prompts);
        }
        match self.prompt.as_deref() {
            Some("-") => Ok(vec![read(Path::new("-"))?.trim_end_matches(['\r', '\n']).to_owned()]),
            Some(text) => Ok(vec![text.to_owned()]),
            None => Ok(Vec::new()),
        }
    }
}

/// A file, or standard input.
fn read(path: &Path) -> Result<String> {
    if is_standard(path) {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        return read.map(|_| text).map_err(|e| Error::new(format!("cannot read standard input: {e}")));
    }
    fs::read_to_string(path).map_err(|e| Error::new(format!("cannot read: {e}")).at(path.display()))
}

/// The conversations of a file.
fn conversations(path: &Path) -> Result<Vec<Conversation>> {
    let text = read(path)?;
    let parse = |json: Value| match json {
        Value::Object(mut fields) => {
            let tools = fields.remove("tools");
            let messages = fields.remove("messages").or_else(|| fields.remove("conversations")).ok_or_else(|| {
                let found: Vec<&str> = fields.keys().map(String::as_str).collect();
                Error::new(format!("expected the key \"messages\", found keys: {}", found.join(", ")))
                    .hint("prompts are read by --prompts")
            })?;
            let conversation = Conversation::new(messages)?;
            tools.map_or(Ok(conversation.clone()), |tools| conversation.with_tools(tools))
        }
        list => Conversation::new(list),
    };
    // one over many lines, or one a line
    if let Ok(whole) = serde_json::from_str(&text) {
        return parse(whole).map(|one| vec![one]).map_err(|e| e.at(path.display()));
    }
    let mut all = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |e: Error| e.at(format!("{}, line {}", path.display(), i + 1));
        let json = serde_json::from_str(line).map_err(|e| at(Error::new(format!("expected JSON: {e}"))))?;
        all.push(parse(json).map_err(at)?);
    }
    if all.is_empty() {
        return Err(Error::new("expected conversations, found none").at(path.display()));
    }
    Ok(all)
}

/// A conversation's text up to where the assistant is to go on, and the token behind its turns, if the template writes one.
fn rendered(
    conversation: &Conversation,
    template: &ChatTemplate,
    tokeniser: &Tokeniser,
) -> Result<(String, Option<u32>)> {
    let text = template.render(conversation.messages(), conversation.tools(), true)?;
    let mut messages = conversation.messages().to_vec();
    messages.push(json!({"role": "assistant", "content": "."}));
    let special = tokeniser.special();
    // a template that will not have such a conversation ends turns as it likes
    let answered = Conversation::new(messages.into()).and_then(|c| c.render(template, TrainOn::Last, &special)).ok();
    let end = answered.and_then(|answered| {
        let last = answered.text[answered.counts.last()?.clone()].trim_end().to_owned();
        tokeniser.id(special.iter().find(|text| !text.is_empty() && last.ends_with(*text))?)
    });
    Ok((text, end))
}

/// A text and how it came to its end.
#[derive(Serialize)]
struct Generated<'a> {
    prompt: &'a str,
    text: &'a str,
    /// Tokens of the text.
    tokens: usize,
    /// `stop` by a token or text that ends it, `length` by --max-tokens.
    finish: &'static str,
}

impl Args {
    /// That options of drawing are given, and nothing is drawn.
    fn drawing_nothing(&self) -> Option<String> {
        let given = [("--top-p", self.top_p != 1.0), ("--top-k", self.top_k != 0), ("--seed", self.seed != 0)];
        let given: Vec<&str> = given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect();
        (self.temperature == 0.0 && !given.is_empty()).then(|| {
            format!("{} without --temperature: nothing is drawn, the most likely token is taken", given.join(", "))
        })
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let given = args.prompt.given()?;
    args.drawing_nothing().iter().for_each(|w| output::warn(w));
    let Used { dir, loaded, .. } = match &args.adapter {
        Some(adapter) => args.model.with_adapter(adapter)?,
        None => args.model.load(None)?,
    };
    loaded.warnings.iter().for_each(|w| output::warn(w));
    let model = loaded.model;
    if model.config.family().head != HeadKind::Causal {
        let name = model.config.family().name;
        return Err(Error::usage(format!(
            "--model: expected a model that goes on with texts (a decoder), found a {name}"
        ))
        .at(dir.display())
        .hint("colrow predict answers with it"));
    }
    let tokeniser = Tokeniser::load(&loaded.tokenizer_dir, &model.config)?;
    tokeniser.notes().iter().for_each(|w| output::warn(w));
    let mut ends = generation::end_tokens(&loaded.tokenizer_dir, &model.config)?;
    let mut prompts = Vec::new();
    match given {
        Given::Texts(texts) => {
            let ids = tokeniser.texts(&texts)?;
            prompts.extend(texts.into_iter().zip(ids).map(|(text, ids)| (beginning(&text), text, ids)));
        }
        Given::Conversations(conversations) => {
            let named = tokeniser.named().iter().map(|(&name, text)| (name.to_owned(), text.clone().into()));
            let template = ChatTemplate::open(&loaded.tokenizer_dir, named.collect(), Moment::now())?;
            for conversation in &conversations {
                let (text, end) = rendered(conversation, &template, &tokeniser)?;
                ends.extend(end.filter(|end| !ends.contains(end)));
                let ids = tokeniser.rendered(&text)?;
                let last = conversation.messages().last().and_then(|message| message["content"].as_str());
                prompts.push((beginning(last.unwrap_or(&text)), text, ids));
            }
        }
    }
    let choice = Choice {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        key: Key::new(args.seed).named("generate"),
    };
    let cache = match args.cache.as_str() {
        "bf16" => Some(Code::Bf16),
        "int8" => Some(Code::Int8),
        _ => None,
    };
    let stop = signals::catch()?;
    stop.in_good_order("stopping");
    let learned = model.config.architecture.learned_positions().unwrap_or(usize::MAX);
    let mut is_told = false;
    for (i, (heading, prompt, ids)) in prompts.iter().enumerate() {
        let choice = Choice { key: choice.key.child(i as u64), ..choice };
        let how = Decoding { choice, ends: &ends, longest: args.max_tokens, cache };
        if !args.json && prompts.len() > 1 {
            let space = if i > 0 { "\n" } else { "" };
            write_out(|out| writeln!(out, "{space}==> {} of {}: {} <==", i + 1, prompts.len(), heading))?;
        }
        let mut written = Written { show: !args.json, ..Written::new(&tokeniser, &args.stop) };
        let text = model.go_on(ids, &how, &mut |token| written.push(token) && !stop.flag().load(Ordering::SeqCst))?;
        written.finish()?;
        if ids.len() + written.ids.len() > learned && !std::mem::replace(&mut is_told, true) {
            output::warn(&format!(
                "a text of {} tokens is longer than max_position_embeddings in config.json, {learned}: later positions the model has not learned",
                ids.len() + written.ids.len()
            ));
        }
        let ended = text.ended || written.stopped;
        if args.json {
            let finish = if ended { "stop" } else { "length" };
            let line = Generated { prompt, text: &written.text, tokens: written.ids.len(), finish };
            write_out(|out| {
                serde_json::to_writer(&mut *out, &line)?;
                writeln!(out)
            })?;
        } else {
            write_out(|out| writeln!(out))?;
        }
        if let Some(signal) = stop.signal() {
            return Err(Error::stopped(signal, "stopped before the end of the text"));
        }
    }
    Ok(())
}

/// The first line of a text, cut where it is long.
fn beginning(prompt: &str) -> String {
    const MOST: usize = 60;
    let line = prompt.trim().lines().next().unwrap_or_default();
    let cut: String = line.chars().take(MOST).collect();
    let goes_on = cut.len() < prompt.trim().len();
    format!("{}{}", printable(&cut), if goes_on { "…" } else { "" })
}

/// A text as its tokens come.
struct Written<'a> {
    tokeniser: &'a Tokeniser,
    stops: &'a [String],
    show: bool,
    ids: Vec<u32>,
    /// The tokens whose text is known, and from where on they are decoded: neighbours say whether there is a space.
    known: usize,
    first: usize,
    text: String,
    shown: usize,
    stopped: bool,
    failure: Option<Error>,
}

impl<'a> Written<'a> {
    fn new(tokeniser: &'a Tokeniser, stops: &'a [String]) -> Self {
        let (ids, text) = (Vec::new(), String::new());
        Self { tokeniser, stops, show: false, ids, known: 0, first: 0, text, shown: 0, stopped: false, failure: None }
    }

    /// Whether the text goes on.
    fn push(&mut self, token: u32) -> bool {
        self.ids.push(token);
        let result = self.decode(false).and_then(|()| self.show(false));
        self.failure = result.err();
        self.failure.is_none() && !self.stopped
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if !self.stopped {
            self.decode(true)?;
        }
        self.show(true)
    }

    /// Takes up the text of the last tokens, unless it ends within a character.
    fn decode(&mut self, all: bool) -> Result<()> {
        let before = self.tokeniser.part(&self.ids[self.first..self.known])?;
        let after = self.tokeniser.part(&self.ids[self.first..])?;
        if after.len() <= before.len() || !all && after.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(());
        }
        self.text.push_str(after.get(before.len()..).unwrap_or_default());
        (self.first, self.known) = (self.known, self.ids.len());
        if let Some(at) = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|stop| self.text.find(stop)).min() {
            self.text.truncate(at);
            self.stopped = true;
        }
        Ok(())
    }

    /// Shows what is new, but for what may become a text that ends it.
    fn show(&mut self, all: bool) -> Result<()> {
        let begun = |stop: &String| {
            (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && self.text.ends_with(&stop[..n]))
        };
        let held = if all { 0 } else { self.stops.iter().filter_map(begun).max().unwrap_or(0) };
        let end = self.text.len() - held;
        if self.show && end > self.shown {
            let piece = printable(&self.text[self.shown..end]);
            write_out(|out| out.write_all(piece.as_bytes()))?;
        }
        self.shown = self.shown.max(end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        let p = number(0.0, 1.0);
        assert_eq!((p("0.5"), p("1")), (Ok(0.5), Ok(1.0)));
        for bad in ["-0.1", "2", "NaN", "x"] {
            assert_eq!(p(bad).unwrap_err(), "expected a number from 0 to 1");
        }
    }
}
