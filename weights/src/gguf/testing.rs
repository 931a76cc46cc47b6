//! A writer of small GGUF files, for tests only.

/// A metadata value.
#[derive(Clone, Debug)]
pub(crate) enum Meta {
    U32(u32),
    U64(u64),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// Arrays of one `u8` each, this many levels deep.
    Nested(usize),
}

/// Builds the bytes of a version 3 file with alignment 32.
#[derive(Clone, Default)]
pub(crate) struct Builder {
    metadata: Vec<(String, Meta)>,
    tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl Meta {
    fn number(&self) -> u32 {
        match self {
            Meta::U32(_) => 4,
            Meta::I32(_) => 5,
            Meta::F32(_) => 6,
            Meta::Bool(_) => 7,
            Meta::String(_) => 8,
            Meta::U64(_) => 10,
            Meta::Strings(_) | Meta::I32s(_) | Meta::F32s(_) | Meta::Nested(_) => 9,
        }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let head = |bytes: &mut Vec<u8>, element: u32, len: usize| {
            bytes.extend(element.to_le_bytes());
            bytes.extend((len as u64).to_le_bytes());
        };
        match self {
            Meta::U32(v) => bytes.extend(v.to_le_bytes()),
            Meta::U64(v) => bytes.extend(v.to_le_bytes()),
            Meta::I32(v) => bytes.extend(v.to_le_bytes()),
            Meta::F32(v) => bytes.extend(v.to_le_bytes()),
            Meta::Bool(v) => bytes.push(u8::from(*v)),
            Meta::String(v) => text(bytes, v),
            Meta::Strings(v) => {
                head(bytes, 8, v.len());
                v.iter().for_each(|s| text(bytes, s));
            }
            Meta::I32s(v) => {
                head(bytes, 5, v.len());
                v.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
            }
            Meta::F32s(v) => {
                head(bytes, 6, v.len());
                v.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
            }
            Meta::Nested(0) => {
                head(bytes, 0, 1);
                bytes.push(7);
            }
            Meta::Nested(depth) => {
                head(bytes, 9, 1);
                Meta::Nested(depth - 1).write(bytes);
            }
        }
    }
}

impl Builder {
    pub(crate) fn new() -> Self {
        Builder::default()
    }

    /// Sets a key, replacing what it had.
    pub(crate) fn meta(&mut self, key: &str, value: Meta) -> &mut Self {
        self.remove_meta(key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    /// Adds a key even if it is there.
    pub(crate) fn meta_again(&mut self, key: &str, value: Meta) -> &mut Self {
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub(crate) fn remove_meta(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(k, _)| k != key);
        self
    }

    /// Adds a tensor; `shape` is outermost first, `number` the type on disk.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], number: u32, data: Vec<u8>) -> &mut Self {
        self.tensors.push((name.to_owned(), shape.to_vec(), number, data));
        self
    }

    pub(crate) fn f32_tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        self.tensor(name, shape, 0, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub(crate) fn remove_tensor(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|(n, ..)| n != name);
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        self.build_with(|_, offset| offset)
    }

    /// As [`Builder::build`]; `place` may change each tensor's offset.
    pub(crate) fn build_with(&self, place: impl Fn(&str, u64) -> u64) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut bytes, key);
            bytes.extend(value.number().to_le_bytes());
            value.write(&mut bytes);
        }
        let mut offset = 0;
        for (name, shape, number, data) in &self.tensors {
            text(&mut bytes, name);
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|&s| bytes.extend((s as u64).to_le_bytes()));
            bytes.extend(number.to_le_bytes());
            bytes.extend(place(name, offset).to_le_bytes());
            offset = (offset + data.len() as u64).next_multiple_of(32);
        }
        for (.., data) in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(data);
        }
        bytes
    }
}
