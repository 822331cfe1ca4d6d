//! Closed sets of names in a recipe: each is one enum, and its names are written once.

/// An enum whose variants have names in a recipe.
pub trait Choice: Copy + 'static {
    /// Every variant, in the order in which messages list them.
    const ALL: &'static [Self];

    /// The name as a recipe writes it.
    fn name(self) -> &'static str;
}

/// Declares an enum with its recipe names, and with them [`Choice`], `Display` and `Serialize`.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $crate::recipe::Choice for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($crate::recipe::Choice::name(*self))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str($crate::recipe::Choice::name(*self))
            }
        }
    };
}
pub(super) use choice;
