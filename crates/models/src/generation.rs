//! `generation_config.json`: which tokens end a text, as a model's folder says it.

use std::path::Path;

use colrow_tensor::{Error, Result};
use serde_json::{Map, Value};

use crate::config::Config;
use crate::files::read_json_bytes;

/// The file.
pub const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// The tokens that end a text of the model in `dir`: those of its `generation_config.json`, else those of its `config.json`.
///
/// # Errors
/// A file that cannot be read; tokens that are no numbers, or that the model does not have.
pub fn end_tokens(dir: &Path, config: &Config) -> Result<Vec<u32>> {
    let path = dir.join(GENERATION_CONFIG_FILE);
    let fallback = || config.architecture.end_tokens();
    if !path.exists() {
        return Ok(fallback());
    }
    let wrong = |what: String| Error::new(what).at(path.display());
    let json: Map<String, Value> =
        serde_json::from_slice(&read_json_bytes(&path)?).map_err(|e| wrong(format!("expected a JSON object: {e}")))?;
    let ids = match json.get("eos_token_id") {
        None | Some(Value::Null) => return Ok(fallback()),
        Some(Value::Array(ids)) => ids.clone(),
        Some(id) => vec![id.clone()],
    };
    let words = config.architecture.vocab_size();
    let id = |id: &Value| id.as_u64().filter(|&id| id < words as u64).map(|id| id as u32);
    let found: Option<Vec<u32>> = ids.iter().map(id).collect();
    found.ok_or_else(|| {
        let found = json["eos_token_id"].to_string();
        wrong(format!("eos_token_id: expected tokens below vocab_size = {words}, found {found}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_several_or_those_of_the_configuration() {
        let config = r#"{"model_type":"llama","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,"intermediate_size":8,
            "vocab_size":9,"eos_token_id":[3,4]}"#;
        let config = Config::from_json(config.as_bytes(), Path::new("config.json")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(end_tokens(dir.path(), &config).unwrap(), [3, 4]);
        let read = |text: &str| {
            std::fs::write(dir.path().join(GENERATION_CONFIG_FILE), text).unwrap();
            end_tokens(dir.path(), &config).map_err(|e| e.to_string())
        };
        assert_eq!(read(r#"{"eos_token_id": 5}"#).unwrap(), [5]);
        assert_eq!(read(r#"{"eos_token_id": [5, 8]}"#).unwrap(), [5, 8]);
        assert_eq!(read(r#"{"eos_token_id": null}"#).unwrap(), [3, 4]);
        assert_eq!(read("{}").unwrap(), [3, 4]);
        for bad in [r#"{"eos_token_id": 9}"#, r#"{"eos_token_id": ["</s>"]}"#] {
            assert!(read(bad).unwrap_err().starts_with("eos_token_id: expected tokens below vocab_size = 9, found "));
        }
        assert!(read("[").unwrap_err().contains("expected a JSON object"));
    }
}
