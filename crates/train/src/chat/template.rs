//! Chat templates of model folders, rendered as `transformers` renders them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use colrow_models::files;
use colrow_tensor::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, Value as Jinja};
use serde_json::{Map, Value};

use super::marks;
use super::python::{Dumps, Moment};

/// The file of its own that a template may have.
const FILE: &str = "chat_template.jinja";
const CONFIG: &str = "tokenizer_config.json";

/// More than any template needs; the longest published ones have some 20 kB.
const MOST_BYTES: u64 = 4 << 20;

/// Instructions that a rendering may take: some hundreds a message are usual, and a template may be anybody's.
const FUEL: u64 = 30_000_000;

/// What stands before a refusal of the template's own, so that it is told from what goes wrong.
const REFUSAL: &str = "\u{1}";

/// The names that a template may use beside messages and tools: special tokens such as `bos_token`.
pub type Variables = BTreeMap<String, Value>;

/// A chat template.
///
/// The environment is that of `transformers`: `trim_blocks`, `lstrip_blocks`, loop controls, Python's methods, `raise_exception`, `strftime_now`,
/// a `tojson` that escapes nothing and keeps the order of keys, and `{% generation %}`.
pub struct ChatTemplate {
    environment: Environment<'static>,
    variables: Variables,
    /// Whether `strftime_now` was called.
    dated: Arc<AtomicBool>,
    marks_generation: bool,
    /// The file that it was read from; empty if from none.
    source: PathBuf,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// What a template is given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'a> {
    pub(super) messages: &'a [Value],
    pub(super) tools: Option<&'a Value>,
    pub(super) documents: Option<&'a Value>,
    pub(super) add_generation_prompt: bool,
}

const TEMPLATE: &str = "chat template";
const TOOL_TEMPLATE: &str = "chat template for tools";
const MARKED: &str = "chat template with marks";

/// The templates of a folder by name.
struct Named {
    default: Option<String>,
    tool_use: Option<String>,
    path: PathBuf,
}

impl ChatTemplate {
    /// The template `source`, which may use `variables`, and for which it is `now`.
    ///
    /// # Errors
    /// A template that does not parse.
    pub fn new(source: &str, variables: Variables, now: Moment) -> Result<Self> {
        let named = Named { default: Some(source.to_owned()), tool_use: None, path: PathBuf::new() };
        Self::of(named, variables, now)
    }

    /// The template of a model's or a tokenizer's folder: `chat_template.jinja`, or else `chat_template` of `tokenizer_config.json`, a text or a
    /// list of named ones, of which `default` and, where there are tools, `tool_use` are used.
    ///
    /// # Errors
    /// A folder without a template; one that cannot be read or does not parse.
    pub fn open(dir: &Path, variables: Variables, now: Moment) -> Result<Self> {
        let named = Named::open(dir)?.ok_or_else(|| {
            Error::new(format!("expected a chat template, found neither {FILE} nor chat_template in {CONFIG}"))
                .at(dir.display())
                .hint(
                    "conversations need the template of their model: use an instruct model, put its chat_template.jinja into the folder, \
                     or train on texts by task = \"text\"",
                )
        })?;
        Self::of(named, variables, now)
    }

    /// Whether a folder has a template.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn is_in(dir: &Path) -> Result<bool> {
        Named::open(dir).map(|named| named.is_some())
    }

    fn of(Named { default, tool_use, path }: Named, variables: Variables, now: Moment) -> Result<Self> {
        let dated = Arc::new(AtomicBool::new(false));
        let mut environment = environment(dated.clone(), now);
        let at = |e: Error| if path.as_os_str().is_empty() { e } else { e.at(path.display()) };
        let only = default.or_else(|| tool_use.clone()).unwrap_or_default();
        let tools = tool_use.unwrap_or_else(|| only.clone());
        let marks_generation = marks::is_marked(&only);
        let plain = marks::without_marks;
        for (name, text) in
            [(TEMPLATE, plain(&only)), (TOOL_TEMPLATE, plain(&tools)), (MARKED, marks::with_marks(&only))]
        {
            environment.add_template_owned(name, text).map_err(|e| {
                let line = e.line().map_or(String::new(), |line| format!(" in its line {line}"));
                at(Error::new(format!("the chat template does not parse{line}: {}", said(&e)))
                    .hint("Jinja2 of transformers reads it? Then please report it; else mend it in the model's folder"))
            })?;
        }
        Ok(Self { environment, variables, dated, marks_generation, source: path })
    }

    /// The text of a conversation; with `prompt` the beginning of an answer behind it.
    ///
    /// # Errors
    /// What the template refuses, in its own words; what goes wrong in it.
    pub fn render(&self, messages: &[Value], tools: Option<&Value>, prompt: bool) -> Result<String> {
        self.run(&Given { messages, tools, documents: None, add_generation_prompt: prompt }, false)
    }

    /// Whether the template says by `{% generation %}` what the model writes.
    pub(super) fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Whether a rendering has asked for the date.
    pub fn is_dated(&self) -> bool {
        self.dated.load(Ordering::Relaxed)
    }

    pub(super) fn run(&self, given: &Given<'_>, marked: bool) -> Result<String> {
        let mut context: Map<String, Value> =
            self.variables.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        context.insert("messages".into(), given.messages.iter().map(with_reasoning).collect());
        context.insert("tools".into(), given.tools.cloned().unwrap_or(Value::Null));
        context.insert("documents".into(), given.documents.cloned().unwrap_or(Value::Null));
        context.insert("add_generation_prompt".into(), given.add_generation_prompt.into());
        let name = match (marked, given.tools.is_some()) {
            (true, _) => MARKED,
            (false, true) => TOOL_TEMPLATE,
            (false, false) => TEMPLATE,
        };
        let template = self.environment.get_template(name).map_err(|e| self.failed(&e))?;
        template.render(Jinja::from(Serde(context))).map_err(|e| self.failed(&e))
    }

    fn failed(&self, e: &minijinja::Error) -> Error {
        if let Some(refusal) = refusal(e) {
            return Error::new(format!("the chat template refuses the conversation: {refusal}"));
        }
        let line = e.line().map_or(String::new(), |line| format!(" in its line {line}"));
        Error::new(format!("the chat template fails{line}: {}", said(e)))
    }
}

/// What a template says by `raise_exception`, if that is why it ended.
fn refusal(e: &minijinja::Error) -> Option<String> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(e) = next {
        let detail = e.downcast_ref::<minijinja::Error>().and_then(minijinja::Error::detail);
        if let Some(refusal) = detail.and_then(|detail| detail.strip_prefix(REFUSAL)) {
            return Some(refusal.to_owned());
        }
        next = e.source();
    }
    None
}

/// An error of the library without the place, which is named otherwise.
fn said(e: &minijinja::Error) -> String {
    match e.detail() {
        Some(detail) => format!("{}: {detail}", e.kind()),
        None => e.kind().to_string(),
    }
}

/// A message with its reasoning under the names that templates read it by, as `transformers` gives it.
fn with_reasoning(message: &Value) -> Value {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let Value::Object(fields) = message else { return message.clone() };
    let reasoning = NAMES.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null()));
    let Some(reasoning) = reasoning else { return message.clone() };
    let mut all = Map::new();
    all.insert("thinking".into(), reasoning.clone());
    all.extend(fields.clone());
    all.insert("reasoning_content".into(), reasoning.clone());
    Value::Object(all)
}

fn environment(dated: Arc<AtomicBool>, now: Moment) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSAL}{message}")))
    });
    environment.add_function("strftime_now", move |format: String| {
        dated.store(true, Ordering::Relaxed);
        now.strftime(&format)
    });
    environment.add_filter("tojson", tojson);
    environment
}

/// `json.dumps` as `transformers` gives it to templates: `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(value: &Jinja, rest: Rest<Jinja>, kwargs: Kwargs) -> Result<Jinja, minijinja::Error> {
    let wrong = |what: &str| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
    let argument = |place: usize, name: &str| -> Result<Option<Jinja>, minijinja::Error> {
        let given = match rest.get(place) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Jinja>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let flag = |place, name| argument(place, name).map(|value| value.is_some_and(|value| value.is_true()));
    let indent = match argument(1, "indent")? {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let n = i64::try_from(indent).map_err(|_| wrong("expected a number or a text as indent"))?;
                " ".repeat(n.clamp(0, 64) as usize)
            }
        }),
    };
    let separators = match argument(2, "separators")? {
        None => None,
        Some(pair) => {
            let texts: Vec<Option<String>> = pair.try_iter()?.map(|text| text.as_str().map(str::to_owned)).collect();
            match &texts[..] {
                [Some(item), Some(key)] => Some((item.clone(), key.clone())),
                _ => return Err(wrong("expected two texts as separators")),
            }
        }
    };
    let how = Dumps { ensure_ascii: flag(0, "ensure_ascii")?, indent, separators, sort_keys: flag(3, "sort_keys")? };
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(wrong("the value is undefined"));
    }
    let value = serde_json::to_value(value).map_err(|e| wrong(&e.to_string()))?;
    Ok(Jinja::from(how.text(&value)))
}

impl Named {
    fn open(dir: &Path) -> Result<Option<Self>> {
        let own = dir.join(FILE);
        if let Some(text) = read(&own)? {
            return Ok(Some(Self { default: Some(text), tool_use: None, path: own }));
        }
        let path = dir.join(CONFIG);
        let Some(text) = read(&path)? else { return Ok(None) };
        let config: Value = serde_json::from_str(&text)
            .map_err(|e| Error::new(format!("expected a JSON object: {e}")).at(path.display()))?;
        let wrong = || {
            Error::new("chat_template: expected a text, or a list of objects with name and template").at(path.display())
        };
        let (mut default, mut tool_use) = (None, None);
        match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => default = Some(text.clone()),
            Some(Value::Array(all)) => {
                for one in all {
                    let text = |key: &str| one.get(key).and_then(Value::as_str).ok_or_else(wrong);
                    match text("name")? {
                        "default" => default = Some(text("template")?.to_owned()),
                        "tool_use" => tool_use = Some(text("template")?.to_owned()),
                        _ => {
                            text("template")?;
                        }
                    }
                }
                if default.is_none() && tool_use.is_none() {
                    return Err(Error::new("chat_template: expected one with the name \"default\"").at(path.display()));
                }
            }
            Some(_) => return Err(wrong()),
        }
        Ok(Some(Self { default, tool_use, path }))
    }
}

/// The text of a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<String>> {
    match files::read(path, MOST_BYTES) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Error::new("expected text in UTF-8, found other bytes").at(path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::from(e).at(path.display())),
    }
}
