//! Closed sets of names: each is one enum, whose names stand once, beside its variants.

/// An enum whose variants have names, as recipes, arguments, reports and files write them.
pub trait Named: Copy + 'static {
    /// Every variant, in the order in which messages list them.
    const ALL: &'static [Self];

    /// The variant's name.
    fn name(self) -> &'static str;

    /// The variant of this name, to the letter.
    fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|one| one.name() == name)
    }
}

/// Declares an enum with its names, and with them [`Named`], `Display` and `serde::Serialize`, which writes the name.
///
/// ```
/// use colrow_tensor::{Named, named};
///
/// named! {
///     /// Two things.
///     Thing {
///         /// One.
///         First = "1st",
///         /// Another.
///         Second = "2nd",
///     }
/// }
/// assert_eq!(Thing::Second.to_string(), "2nd");
/// assert_eq!([Thing::find("2nd"), Thing::find("2ND")], [Some(Thing::Second), None]);
/// ```
#[macro_export]
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $crate::Named for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        $crate::named!(@by_name $name);
    };
    (@by_name $name:ident) => {
        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad($crate::Named::name(*self))
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, s: S) -> ::std::result::Result<S::Ok, S::Error> {
                s.serialize_str($crate::Named::name(*self))
            }
        }
    };
}
