//! JSON as Go's `encoding/json` reads it.
//!
//! The control protocol is defined by what Go's decoder accepts: object keys match fields without regard to case, and
//! `null` in any place leaves a zero value. [`from_slice`] decodes any `Deserialize` type by these rules, so that the types
//! themselves stay plain. Unknown fields are ignored as serde does by default.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Input that is not JSON, or not of the expected type.
#[derive(Debug, thiserror::Error)]
#[error("invalid JSON at line {}, column {}", .0.line(), .0.column())]
pub struct JsonError(#[from] serde_json::Error);

/// Decodes `bytes` by the rules of Go.
///
/// # Errors
/// When `bytes` is not one JSON value of type `T`.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let mut inner = serde_json::Deserializer::from_slice(bytes);
    let value = T::deserialize(GoJson(&mut inner))?;
    inner.end()?;
    Ok(value)
}

/// Encodes `value`.
///
/// # Errors
/// When `value` has a map whose keys are no strings or numbers; no type of this crate has.
pub fn to_vec<T: serde::Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, JsonError> {
    Ok(serde_json::to_vec(value)?)
}

/// Whether a field is left out of the output, as Go's `omitempty` and `omitzero` do.
pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The field names of a struct, if the value is one.
type Fields = Option<&'static [&'static str]>;

/// A `serde_json` deserializer with Go's rules on top.
struct GoJson<D>(D);

/// What a place holds, and so which zero value `null` stands for.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Signed,
    Unsigned,
    Float,
    String,
    List,
    Object(Fields),
}

/// Turns `null` into the zero value of `kind` and passes on all else.
struct NullIsZero<V> {
    visitor: V,
    kind: Kind,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for NullIsZero<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        match self.kind {
            Kind::Bool => self.visitor.visit_bool(false),
            Kind::Signed | Kind::Unsigned => self.visitor.visit_u64(0),
            Kind::Float => self.visitor.visit_f64(0.0),
            Kind::String => self.visitor.visit_str(""),
            Kind::List => self.visitor.visit_seq(Empty::<E>::new()),
            Kind::Object(_) => self.visitor.visit_map(Empty::<E>::new()),
        }
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let visitor = self.visitor;
        match self.kind {
            Kind::Bool => inner.deserialize_bool(visitor),
            Kind::Signed => inner.deserialize_i64(visitor),
            Kind::Unsigned => inner.deserialize_u64(visitor),
            Kind::Float => inner.deserialize_f64(visitor),
            Kind::String => inner.deserialize_str(visitor),
            Kind::List => inner.deserialize_seq(Nested {
                visitor,
                fields: None,
            }),
            Kind::Object(fields) => inner.deserialize_map(Nested { visitor, fields }),
        }
    }
}

/// A list or object without entries.
struct Empty<E>(std::marker::PhantomData<E>);

impl<E> Empty<E> {
    fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<'de, E: de::Error> SeqAccess<'de> for Empty<E> {
    type Error = E;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, _: T) -> Result<Option<T::Value>, E> {
        Ok(None)
    }
}

impl<'de, E: de::Error> MapAccess<'de> for Empty<E> {
    type Error = E;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, _: K) -> Result<Option<K::Value>, E> {
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, _: V) -> Result<V::Value, E> {
        Err(E::custom("no value without a key"))
    }
}

impl<'de, D: Deserializer<'de>> GoJson<D> {
    fn zero_for_null<V: Visitor<'de>>(self, kind: Kind, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(NullIsZero { visitor, kind })
    }
}

macro_rules! by_kind {
    ($($method:ident => $kind:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.zero_for_null($kind, visitor)
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for GoJson<D> {
    type Error = D::Error;

    by_kind! {
        deserialize_bool => Kind::Bool;
        deserialize_i8 => Kind::Signed;
        deserialize_i16 => Kind::Signed;
        deserialize_i32 => Kind::Signed;
        deserialize_i64 => Kind::Signed;
        deserialize_u8 => Kind::Unsigned;
        deserialize_u16 => Kind::Unsigned;
        deserialize_u32 => Kind::Unsigned;
        deserialize_u64 => Kind::Unsigned;
        deserialize_f32 => Kind::Float;
        deserialize_f64 => Kind::Float;
        deserialize_str => Kind::String;
        deserialize_string => Kind::String;
        deserialize_seq => Kind::List;
        deserialize_map => Kind::Object(None);
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.zero_for_null(Kind::Object(Some(fields)), visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(Nested {
            visitor,
            fields: None,
        })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(
            name,
            Nested {
                visitor,
                fields: None,
            },
        )
    }

    // Opaque JSON stays as it is: a `null` inside a capability's value is a value.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_ignored_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple_struct(name, len, visitor)
    }

    serde::forward_to_deserialize_any! { i128 u128 char bytes byte_buf unit identifier }
}

/// Applies Go's rules to what is inside a value.
struct Nested<T> {
    visitor: T,
    fields: Fields,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Nested<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(GoJson(inner))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(GoJson(inner))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Entries { inner, fields: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Entries {
            inner,
            fields: self.fields,
        })
    }
}

/// The entries of a list or object, each decoded by Go's rules.
struct Entries<A> {
    inner: A,
    fields: Fields,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Entries<A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.inner.next_element_seed(Value(seed))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        match self.fields {
            Some(fields) => self.inner.next_key_seed(FieldName { seed, fields }),
            None => self.inner.next_key_seed(seed),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.inner.next_value_seed(Value(seed))
    }
}

/// Decodes one entry by Go's rules.
struct Value<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Value<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(GoJson(inner))
    }
}

/// Reads an object's key and gives it the case of the field that it names.
struct FieldName<S> {
    seed: S,
    fields: &'static [&'static str],
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for FieldName<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        inner.deserialize_str(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for FieldName<S> {
    type Value = S::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<S::Value, E> {
        let exact = self.fields.iter().find(|field| **field == name);
        let field = exact.or_else(|| self.fields.iter().find(|field| field.eq_ignore_ascii_case(name)));
        self.seed
            .deserialize(StrDeserializer::new(field.copied().unwrap_or(name)))
    }
}

/// `time.Time`: RFC 3339, where the zero time of Go means "none".
pub(crate) mod time {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    const ZERO: &str = "0001-01-01T00:00:00Z";

    pub(crate) fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => time.serialize(serializer),
            None => serializer.serialize_str(ZERO),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None | Some("" | ZERO) => Ok(None),
            Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
        }
    }
}

/// `[]byte`: standard base64.
pub(crate) mod base64 {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&base64::display::Base64Display::new(bytes, &BASE64_STANDARD))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(serde::de::Error::custom)
    }
}

/// A list of `ip:port` from which unreadable entries, such as ones with a named IPv6 zone, are dropped: one odd interface
/// of a peer must not make its whole message unreadable.
pub(crate) mod endpoints {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<SocketAddr>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        Ok(texts.iter().filter_map(|text| text.parse().ok()).collect())
    }
}
