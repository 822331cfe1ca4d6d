//! `adapter_config.json` as PEFT writes it.

use std::path::Path;

use colrow_tensor::{Error, Result};
use fancy_regex::Regex;
use serde_json::{Map, Value};

use super::Selection;
use crate::checkpoint::names::ADAPTER_CONFIG_FILE;
use crate::files::read_json_bytes;
use crate::lora::{LoraConfig, Patterns};

/// Settings that say how adapters were initialised or trained, which their numbers hold, or what only other kinds of layer read.
const WITHOUT_EFFECT: [&str; 15] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    // PEFT sets it to false for linears
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
    // another backward pass
    "velora_config",
];

/// Settings that [`parse`] reads.
const READ: [&str; 16] = [
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "use_rslora",
];

/// Adapters that act on some tokens or inputs only, so that no weight is what they and their base are together.
const NEVER_MERGED: [&str; 2] = ["alora_invocation_tokens", "arrow_config"];

/// Initialisations that leave the base model as it is.
const PLAIN_INITS: [&str; 4] = ["eva", "gaussian", "mica", "orthogonal"];

const MERGE: &str = "merge the adapter into its model in PEFT (merge_and_unload), and use that model";
const CONVERT: &str = "save it in PEFT as plain LoRA: save_pretrained(FOLDER, path_initial_model_for_weight_conversion=INITIAL), \
                       where INITIAL is the folder of the adapter as it was before its training; this leaves out modules_to_save";

/// Initialisations that take what they put into the adapter off the base model, and what to do with such an adapter. Loaded again, PEFT
/// repeats the first two, cannot repeat the next two, and needs no initial adapter for the last.
const CHANGED_BASE: [(&str, &[&str]); 5] = [
    ("pissa", &[MERGE, CONVERT]),
    ("olora", &[MERGE, CONVERT]),
    ("corda", &[CONVERT]),
    ("lora_ga", &[CONVERT]),
    ("loftq", &[MERGE]),
];

/// What an adapter's file of settings says.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// The adapter's settings.
    pub lora: LoraConfig,
    /// The base model, if it is named.
    pub base: Option<Base>,
    /// The modules that have adapters.
    pub selection: Selection,
}

/// The model that an adapter was trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// A folder or hub id.
    pub name: String,
    /// A branch, tag or commit of the hub's.
    pub revision: Option<String>,
}

/// Reads an adapter's file of settings.
///
/// # Errors
/// Settings that this program does not have, by name.
pub fn read_config(dir: &Path) -> Result<AdapterConfig> {
    let path = dir.join(ADAPTER_CONFIG_FILE);
    config_from_json(&read_json_bytes(&path)?).map_err(|e| e.at(path.display()))
}

/// As [`read_config`], from the text of the file.
///
/// # Errors
/// As there.
pub fn config_from_json(json: &[u8]) -> Result<AdapterConfig> {
    let json = serde_json::from_slice(json).map_err(|e| Error::new(format!("expected an object: {e}")))?;
    parse(&PeftKeys(&json))
}

/// The keys of the file.
pub(super) struct PeftKeys<'a>(&'a Map<String, Value>);

fn parse(json: &PeftKeys<'_>) -> Result<AdapterConfig> {
    if json.text("peft_type") != Some("LORA") {
        return Err(json.wrong("peft_type", "\"LORA\"").hint("other adapters than LoRA cannot be read"));
    }
    json.check_init()?;
    for key in json.0.keys().map(String::as_str) {
        if !READ.contains(&key) && !WITHOUT_EFFECT.contains(&key) && json.get(key).is_some_and(says_something) {
            let error = json.wrong(key, "nothing");
            return Err(if NEVER_MERGED.contains(&key) { error } else { error.hint(MERGE) });
        }
    }
    // the biases themselves are in the file of tensors
    if let Some(bias) = json.get("bias").filter(|b| !["none", "all", "lora_only"].iter().any(|known| b == known)) {
        return Err(Error::new(format!("bias: expected \"none\", \"all\" or \"lora_only\", found {bias}")));
    }
    let is_rank = |x: f64| x >= 1.0 && x.fract() == 0.0 && x < 1e9;
    let lora = LoraConfig {
        lora_rank: json.number("r", is_rank, "a whole number of at least 1")? as usize,
        alpha: json.number("lora_alpha", f64::is_finite, "a number")?,
        dropout: match json.get("lora_dropout") {
            Some(_) => json.number("lora_dropout", |x| (0.0..1.0).contains(&x), "a number in [0, 1)")?,
            None => 0.0,
        },
        rank_stabilised: json.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        targets: json.names("target_modules")?,
        modules_to_save: json.names("modules_to_save")?,
        rank_pattern: json.patterns("rank_pattern", |v| v.as_f64().filter(|&x| is_rank(x)).map(|x| x as usize))?,
        alpha_pattern: json.patterns("alpha_pattern", |v| v.as_f64().filter(|x| x.is_finite()))?,
    };
    let base = json.text("base_model_name_or_path").filter(|name| !name.is_empty());
    let revision = json.text("revision").map(str::to_owned);
    let base = base.map(|name| Base { name: name.to_owned(), revision });
    Ok(AdapterConfig { lora, base, selection: Selection::of(json)? })
}

/// Whether a value asks for something. Settings that are not known have to be of this kind.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Object(o) => !o.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::String(s) => s != "none" && !s.is_empty(),
        Value::Number(_) => true,
    }
}

impl<'a> PeftKeys<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    pub(super) fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.get(key).map_or("nothing".to_owned(), Value::to_string);
        Error::new(format!("{key}: expected {expected}, found {found}"))
    }

    fn number(&self, key: &str, ok: impl Fn(f64) -> bool, expected: &str) -> Result<f64> {
        self.get(key).and_then(Value::as_f64).filter(|&x| ok(x)).ok_or_else(|| self.wrong(key, expected))
    }

    /// A list of names; a pattern instead of a list names none.
    pub(super) fn names(&self, key: &str) -> Result<Vec<String>> {
        let list = self.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        list.iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, "a list of names"))).collect()
    }

    fn patterns<T>(&self, key: &str, value: impl Fn(&Value) -> Option<T>) -> Result<Patterns<T>> {
        let Some(found) = self.get(key) else { return Ok(Patterns::default()) };
        let wrong = || self.wrong(key, "numbers by patterns over modules");
        let map = found.as_object().ok_or_else(wrong)?;
        let one = |(pattern, number): (&String, &Value)| {
            // as PEFT's get_pattern_key matches
            Ok((regex(key, &format!(r"(?:.*\.)?(?:{pattern})"))?, value(number).ok_or_else(wrong)?))
        };
        map.iter().map(one).collect::<Result<_>>().map(Patterns)
    }

    /// Checks that the base model is the one that the adapter was trained on.
    fn check_init(&self) -> Result<()> {
        let Some(init) = self.get("init_lora_weights").filter(|v| !v.is_boolean()) else { return Ok(()) };
        let name = init.as_str().unwrap_or_default().to_lowercase();
        if PLAIN_INITS.contains(&name.as_str()) {
            return Ok(());
        }
        let what = format!("init_lora_weights: {init} ");
        match CHANGED_BASE.iter().find(|(prefix, _)| name.starts_with(prefix)) {
            Some((_, ways)) => {
                Err(Error::new(what + "changed the base model, and the adapter does not fit it as it was")
                    .hint(ways.join("; or ")))
            }
            None => {
                Err(Error::new(what + "may have changed the base model in a way that is not known here").hint(MERGE))
            }
        }
    }
}

/// A pattern over whole names, as in Python.
pub(super) fn regex(key: &str, pattern: &str) -> Result<Regex> {
    // Python's name for the very end
    Regex::new(&format!("^(?:{})$", pattern.replace(r"\Z", r"\z")))
        .map_err(|e| Error::new(format!("{key}: cannot read the pattern {pattern:?}: {e}")).hint(MERGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q"],"bias":"none","use_dora":false}"#;

    fn with(more: &str) -> Result<AdapterConfig> {
        config_from_json(GOOD.replacen('{', &format!("{{{more},"), 1).as_bytes())
    }

    #[track_caller]
    fn fails(result: Result<AdapterConfig>, expected: &[&str]) {
        let error = result.unwrap_err().to_string();
        for expected in expected {
            assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn settings_that_mean_something_else_are_refused() {
        assert_eq!(config_from_json(GOOD.as_bytes()).unwrap().lora.scale_of("q"), 2.0);
        for (from, to, message) in [
            ("LORA", "IA3", "peft_type: expected \"LORA\", found \"IA3\""),
            ("none", "some", "bias: expected \"none\", \"all\" or \"lora_only\", found \"some\""),
            (":false", ":true", "use_dora: expected nothing, found true"),
            (":4", ":0", "r: expected a whole number of at least 1, found 0"),
            (":8", ":\"8\"", "lora_alpha: expected a number, found \"8\""),
        ] {
            fails(config_from_json(GOOD.replace(from, to).as_bytes()), &[message]);
        }
        for setting in [
            r#""lora_bias":true"#,
            r#""use_qalora":true"#,
            r#""trainable_token_indices":[1]"#,
            r#""target_parameters":["a"]"#,
            r#""layer_replication":[[0,2]]"#,
            r#""use_bdlora":{"nblocks":2}"#,
            r#""monteclora_config":{"num_samples":2}"#,
            r#""kasa_config":{"beta":0.1}"#,
            r#""a_setting_of_tomorrow":0.5"#,
        ] {
            let key = setting.split('"').nth(1).unwrap();
            fails(with(setting), &[&format!("{key}: expected nothing"), "hint: merge the adapter"]);
        }
        for setting in [r#""alora_invocation_tokens":[5]"#, r#""arrow_config":{"top_k":3}"#] {
            assert!(!with(setting).unwrap_err().to_string().contains("merge"));
        }
    }

    #[test]
    fn settings_without_effect_are_read_over() {
        for setting in [
            r#""layers_to_transform":[1],"layers_pattern":"layer","exclude_modules":["key"]"#,
            r#""target_modules":"all-linear""#,
            r#""fan_in_fan_out":true,"megatron_core":"megatron.core","megatron_config":{"a":1}"#,
            r#""velora_config":{"num_groups":4},"task_type":"TOKEN_CLS","inference_mode":true"#,
            r#""a_setting_of_tomorrow":null,"another":{},"one_more":[],"and_more":false"#,
            r#""bias":"all""#,
        ] {
            with(setting).unwrap();
        }
    }

    #[test]
    fn an_adapter_whose_initialisation_changed_the_base_is_refused() {
        for (init, ways) in [
            ("pissa", ["path_initial_model_for_weight_conversion", "merge"]),
            ("pissa_niter_4", ["path_initial_model_for_weight_conversion", "merge"]),
            ("OLoRA", ["path_initial_model_for_weight_conversion", "merge"]),
            ("corda", ["path_initial_model_for_weight_conversion", "INITIAL"]),
            ("lora_ga", ["path_initial_model_for_weight_conversion", "INITIAL"]),
            ("loftq", ["merge", "merge"]),
            ("tomorrow", ["not known", "merge"]),
        ] {
            let result = with(&format!("\"init_lora_weights\":\"{init}\""));
            fails(result, &[&format!("init_lora_weights: \"{init}\" "), "changed the base model", ways[0], ways[1]]);
        }
        fails(with(r#""init_lora_weights":3"#), &["init_lora_weights: 3"]);
        for init in ["true", "false", "null", "\"gaussian\"", "\"eva\"", "\"orthogonal\"", "\"mica\""] {
            with(&format!("\"init_lora_weights\":{init}")).unwrap();
        }
    }

    #[test]
    fn patterns_match_as_in_peft() {
        let config = with(
            r#""rank_pattern":{"query":2,"^bert.*[01].*key":3,"attention.(q|k)":5},"alpha_pattern":{"layer.1.*":1}"#,
        )
        .unwrap()
        .lora;
        for (module, rank, scale) in [
            ("bert.encoder.layer.0.attention.self.query", 2, 4.0),
            ("bert.encoder.layer.1.attention.self.query", 2, 0.5),
            ("bert.encoder.layer.0.attention.self.key", 3, 8.0 / 3.0),
            ("other.bert.encoder.layer.0.attention.self.key", 4, 2.0),
            ("attention.k", 5, 1.6),
            ("attention.kk", 4, 2.0),
            ("subquery", 4, 2.0),
        ] {
            assert_eq!((config.rank_of(module), config.scale_of(module)), (rank, scale), "{module}");
        }
        let ahead = with(r#""rank_pattern":{"(?!key)[a-z]+":2}"#).unwrap().lora;
        assert_eq!([ahead.rank_of("a.query"), ahead.rank_of("a.key")], [2, 4]);
        fails(with(r#""rank_pattern":{"(q":2}"#), &["rank_pattern: cannot read the pattern ", "(q"]);
        fails(with(r#""rank_pattern":{"q":0}"#), &["rank_pattern: expected numbers by patterns"]);
        fails(with(r#""alpha_pattern":[1]"#), &["alpha_pattern: expected numbers by patterns"]);
    }

    #[test]
    fn the_base_is_named_with_its_revision() {
        let base = |more: &str| with(more).unwrap().base;
        assert_eq!(base(r#""base_model_name_or_path":"""#), None);
        let named = Base { name: "a/b".into(), revision: Some("v2".into()) };
        assert_eq!(base(r#""base_model_name_or_path":"a/b","revision":"v2""#), Some(named));
    }
}
