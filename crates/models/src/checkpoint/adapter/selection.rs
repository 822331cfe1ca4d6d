//! Which modules an adapter's settings select.

use colrow_tensor::{Error, Result};
use fancy_regex::Regex;
use serde_json::Value;

use super::config::{PeftKeys, regex};
use crate::lora::matches;

/// The modules that have adapters, by `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern`, as PEFT's
/// `check_target_module_exists` reads them.
#[derive(Clone, Debug)]
pub struct Selection {
    targets: Modules,
    excluded: Modules,
    /// Numbers of layers; all if there are none.
    layers: Vec<u64>,
    /// What finds a layer's number in the name of a module.
    numbers: Vec<Regex>,
}

#[derive(Clone, Debug)]
enum Modules {
    /// All linears but the last, whatever they are called.
    AllLinear,
    /// Whole names, or their ends after a dot.
    Named(Vec<String>),
    /// A pattern over whole names.
    Matching(Regex),
}

impl Modules {
    fn of(json: &PeftKeys<'_>, key: &str) -> Result<Self> {
        match json.get(key) {
            Some(Value::String(all)) if all.eq_ignore_ascii_case("all-linear") => Ok(Modules::AllLinear),
            Some(Value::String(pattern)) => regex(key, pattern).map(Modules::Matching),
            _ => json.names(key).map(Modules::Named),
        }
    }

    fn hold(&self, module: &str) -> bool {
        match self {
            Modules::AllLinear => true,
            Modules::Named(names) => names.iter().any(|name| is_end(name, module)),
            Modules::Matching(pattern) => matches(pattern, module),
        }
    }
}

fn is_end(name: &str, module: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Selection {
    pub(super) fn of(json: &PeftKeys<'_>) -> Result<Self> {
        let wrong = || json.wrong("layers_to_transform", "a whole number or a list of them");
        let layers = match json.get("layers_to_transform") {
            Some(Value::Array(list)) => list.iter().map(|v| v.as_u64().ok_or_else(wrong)).collect::<Result<_>>()?,
            Some(one) => vec![one.as_u64().ok_or_else(wrong)?],
            None => Vec::new(),
        };
        let key = "layers_pattern";
        let patterns = match json.get(key) {
            Some(Value::String(pattern)) => vec![pattern.clone()],
            _ => json.names(key)?,
        };
        let number = |start: &str| {
            Regex::new(&format!(r"^{start}\.(\d+)\."))
                .map_err(|e| Error::new(format!("{key}: cannot read the pattern: {e}")))
        };
        let numbers = if patterns.iter().all(String::is_empty) {
            vec![number(r".*?\.[^.]*")?]
        } else {
            patterns.iter().map(|pattern| number(&format!(r"(?:|.*?\.){pattern}"))).collect::<Result<_>>()?
        };
        // without targets PEFT takes those usual for the kind of model, and the file shows which these were
        let targets =
            json.get("target_modules").map_or(Ok(Modules::AllLinear), |_| Modules::of(json, "target_modules"))?;
        let excluded = Modules::of(json, "exclude_modules")?;
        Ok(Self { targets, excluded, layers, numbers })
    }

    /// Whether a module of the base model has an adapter.
    pub fn selects(&self, module: &str) -> bool {
        !self.excluded.hold(module) && self.targets.hold(module) && (self.names(module) || self.is_in_layers(module))
    }

    /// Whether a module is selected whatever its layer: by its whole name, or by a pattern.
    fn names(&self, module: &str) -> bool {
        match &self.targets {
            Modules::Named(names) => names.iter().any(|name| name == module),
            Modules::Matching(_) => true,
            Modules::AllLinear => false,
        }
    }

    fn is_in_layers(&self, module: &str) -> bool {
        let number = |pattern: &Regex| pattern.captures(module).ok()??.get(1)?.as_str().parse().ok();
        self.layers.is_empty()
            || self.numbers.iter().find_map(number).is_some_and(|layer: u64| self.layers.contains(&layer))
    }
}

#[cfg(test)]
mod tests {
    use super::super::config_from_json;

    const MODULES: [&str; 5] = [
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.0.attention.self.key",
        "bert.encoder.layer.1.attention.self.query",
        "bert.encoder.layer.11.attention.self.query",
        "bert.pooler.dense",
    ];

    /// By `check_target_module_exists` of PEFT 0.21.2.
    #[test]
    fn modules_are_selected_as_in_peft() {
        for (settings, expected) in [
            (r#""target_modules":["query"]"#, [1, 0, 1, 1, 0]),
            (r#""target_modules":["uery"]"#, [0, 0, 0, 0, 0]),
            (r#""target_modules":["query","bert.pooler.dense"],"layers_to_transform":1"#, [0, 0, 1, 0, 1]),
            (r#""target_modules":["query","dense"],"layers_to_transform":[1,11]"#, [0, 0, 1, 1, 0]),
            (r#""target_modules":["query"],"layers_to_transform":[1],"layers_pattern":"layer""#, [0, 0, 1, 0, 0]),
            (r#""target_modules":["query"],"layers_to_transform":[1],"layers_pattern":["h","layer"]"#, [0, 0, 1, 0, 0]),
            (r#""target_modules":["query"],"layers_to_transform":[1],"layers_pattern":"block""#, [0, 0, 0, 0, 0]),
            (r#""target_modules":["query","key"],"exclude_modules":["layer.0.attention.self.key"]"#, [1, 0, 1, 1, 0]),
            (r#""target_modules":["query","key"],"exclude_modules":".*\\.0\\..*""#, [0, 0, 1, 1, 0]),
            (r#""target_modules":".*\\.(query|dense)""#, [1, 0, 1, 1, 1]),
            (r#""target_modules":"query""#, [0, 0, 0, 0, 0]),
            (r#""target_modules":".*query\\Z""#, [1, 0, 1, 1, 0]),
            (r#""target_modules":".*(?<!\\.0\\.attention\\.self)\\.query""#, [0, 0, 1, 1, 0]),
            (r#""target_modules":"all-linear""#, [1, 1, 1, 1, 1]),
            (r#""target_modules":null"#, [1, 1, 1, 1, 1]),
        ] {
            let json = format!(r#"{{"peft_type":"LORA","r":4,"lora_alpha":8,{settings}}}"#);
            let selection = config_from_json(json.as_bytes()).unwrap().selection;
            assert_eq!(MODULES.map(|module| u8::from(selection.selects(module))), expected, "{settings}");
        }
    }

    #[test]
    fn what_selects_nothing_that_can_be_read_is_named() {
        for (setting, message) in [
            (r#""target_modules":"(q""#, "target_modules: cannot read the pattern"),
            (r#""exclude_modules":[1]"#, "exclude_modules: expected a list of names, found [1]"),
            (r#""layers_to_transform":"1""#, "layers_to_transform: expected a whole number or a list of them, found"),
            (r#""layers_to_transform":[-1]"#, "layers_to_transform: expected a whole number or a list of them, found"),
            (r#""layers_pattern":"(h""#, "layers_pattern: cannot read the pattern"),
        ] {
            let json = format!(r#"{{"peft_type":"LORA","r":4,"lora_alpha":8,{setting}}}"#);
            let error = config_from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
