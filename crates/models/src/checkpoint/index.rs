//! The index of a sharded checkpoint: which file holds which tensor.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use colrow_tensor::{Error, Result};
use serde::de::{self, Deserialize, MapAccess, Visitor};

/// Reads a shard index: a map from tensor names to the names of files in the same folder.
pub fn parse_index(json: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: UniqueKeys,
    }
    struct UniqueKeys(BTreeMap<String, String>);
    impl<'de> Deserialize<'de> for UniqueKeys {
        fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
            struct Entries;
            impl<'de> Visitor<'de> for Entries {
                type Value = UniqueKeys;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a map from tensor names to file names")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<UniqueKeys, A::Error> {
                    let mut entries = BTreeMap::new();
                    while let Some((name, file)) = map.next_entry::<String, String>()? {
                        if let Some(twice) = entries.insert(name.clone(), file) {
                            let what = format_args!("tensor {name:?} is there twice, first in {twice:?}");
                            return Err(de::Error::custom(what));
                        }
                    }
                    Ok(UniqueKeys(entries))
                }
            }
            deserializer.deserialize_map(Entries)
        }
    }
    let index: Index =
        serde_json::from_slice(json).map_err(|e| Error::new(format!("the shard index is not as expected: {e}")))?;
    let UniqueKeys(map) = index.weight_map;
    for (name, file) in &map {
        let mut parts = Path::new(file).components();
        // Joined to the folder, any other path could lead out of it.
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == file.as_str()) {
            return Err(Error::new(format!(
                "tensor {name:?}: expected the name of a file beside the index, found {file:?}"
            )));
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::files::fixed_cases(1024))]

        #[test]
        fn any_index_is_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), map in r#"\{("[ab]":"[./a]{0,4}",?){0,3}\}"#) {
            let _ = parse_index(&bytes);
            if let Ok(map) = parse_index(format!(r#"{{"weight_map":{map}}}"#).as_bytes()) {
                prop_assert!(map.values().all(|file| !file.contains('/') && file != ".."));
            }
        }
    }
}
