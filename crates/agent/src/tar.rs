//! A strict reader of tar archives (ustar, PAX, GNU long names) that takes bytes as they come and refuses everything
//! that is not a regular file or a directory below the destination. No I/O.

/// Names longer than the kernel takes cannot be written; refuse them before anything is.
const MAX_PATH_BYTES: usize = 4000;
const MAX_COMPONENT_BYTES: usize = 255;
/// PAX headers and long names above this are no honest archive.
const MAX_EXTENSION_BYTES: u64 = 1024 * 1024;
/// Extended headers in a row without an entry.
const MAX_EXTENSIONS: u32 = 8;
/// Zero blocks after the end, as padding to the block size of a tape.
const MAX_PADDING_BYTES: u64 = 16 * 1024 * 1024;

const BLOCK: usize = 512;

/// A file or directory of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative, without `.`, `..` and empty parts; empty only for the destination directory itself.
    pub(crate) name: Vec<u8>,
    pub(crate) is_directory: bool,
    /// Permission bits only.
    pub(crate) mode: u32,
    pub(crate) size: u64,
}

/// Who takes the entries.
pub(crate) trait Sink {
    type Error: From<Invalid>;
    fn entry(&mut self, entry: Entry) -> Result<(), Self::Error>;
    fn data(&mut self, data: &[u8]) -> Result<(), Self::Error>;
}

/// Why an archive is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invalid(pub(crate) String);

fn invalid<T>(text: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(text.into()))
}

#[derive(Debug)]
enum State {
    Header,
    Data {
        left: u64,
        padding: u64,
    },
    Extension {
        kind: u8,
        left: u64,
        padding: u64,
        bytes: Vec<u8>,
    },
    Padding {
        left: u64,
    },
    /// After the first zero block.
    End {
        zeros: u64,
    },
}

/// The reader.
#[derive(Debug)]
pub(crate) struct TarReader {
    state: State,
    header: Vec<u8>,
    long_name: Option<Vec<u8>>,
    pax_name: Option<Vec<u8>>,
    pax_size: Option<u64>,
    extensions: u32,
}

impl TarReader {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Header,
            header: Vec::with_capacity(BLOCK),
            long_name: None,
            pax_name: None,
            pax_size: None,
            extensions: 0,
        }
    }

    /// Take the next bytes of the archive.
    pub(crate) fn feed<S: Sink>(&mut self, mut input: &[u8], sink: &mut S) -> Result<(), S::Error> {
        while !input.is_empty() {
            match &mut self.state {
                State::Header => {
                    let (part, rest) = input.split_at(input.len().min(BLOCK - self.header.len()));
                    self.header.extend_from_slice(part);
                    input = rest;
                    if self.header.len() == BLOCK {
                        self.read_header(sink)?;
                        self.header.clear();
                    }
                }
                State::Data { left, padding } => {
                    let (part, rest) = split(input, *left);
                    sink.data(part)?;
                    *left -= part.len() as u64;
                    input = rest;
                    if *left == 0 {
                        self.state = padding_state(*padding);
                    }
                }
                State::Extension {
                    kind,
                    left,
                    padding,
                    bytes,
                } => {
                    let (part, rest) = split(input, *left);
                    bytes.extend_from_slice(part);
                    *left -= part.len() as u64;
                    input = rest;
                    if *left == 0 {
                        let (kind, bytes) = (*kind, std::mem::take(bytes));
                        self.state = padding_state(*padding);
                        self.read_extension(kind, &bytes)?;
                    }
                }
                State::Padding { left } => {
                    let (part, rest) = split(input, *left);
                    *left -= part.len() as u64;
                    input = rest;
                    if *left == 0 {
                        self.state = State::Header;
                    }
                }
                State::End { zeros } => {
                    *zeros += input.len() as u64;
                    if input.iter().any(|byte| *byte != 0) {
                        invalid("data after the end of the archive")?;
                    }
                    if *zeros > MAX_PADDING_BYTES {
                        invalid("too much padding after the end of the archive")?;
                    }
                    input = &[];
                }
            }
        }
        Ok(())
    }

    /// The archive has no more bytes.
    pub(crate) fn finish(&self) -> Result<(), Invalid> {
        match self.state {
            State::End { .. } => Ok(()),
            _ => invalid("the archive ends early"),
        }
    }

    fn read_header<S: Sink>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        if self.header.iter().all(|byte| *byte == 0) {
            if self.extensions > 0 {
                invalid("an extended header without an entry")?;
            }
            self.state = State::End { zeros: 0 };
            return Ok(());
        }
        check_sum(&self.header)?;
        let kind = self.header[156];
        let size = number(&self.header[124..136])?;
        if matches!(kind, b'x' | b'g' | b'L' | b'K') {
            return Ok(self.begin_extension(kind, size)?);
        }
        let entry = self.read_entry(kind, size)?;
        (self.long_name, self.pax_name, self.pax_size, self.extensions) = (None, None, None, 0);
        let left = entry.size;
        self.state = match left {
            0 => State::Header,
            _ => State::Data {
                left,
                padding: padding(left),
            },
        };
        sink.entry(entry)
    }

    fn begin_extension(&mut self, kind: u8, size: u64) -> Result<(), Invalid> {
        self.extensions += 1;
        if size > MAX_EXTENSION_BYTES || self.extensions > MAX_EXTENSIONS {
            return invalid("oversized or too many extended headers");
        }
        if size == 0 {
            return invalid("an empty extended header");
        }
        self.state = State::Extension {
            kind,
            left: size,
            padding: padding(size),
            bytes: Vec::new(),
        };
        Ok(())
    }

    fn read_extension(&mut self, kind: u8, bytes: &[u8]) -> Result<(), Invalid> {
        match kind {
            b'L' => {
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                if bytes[end..].iter().any(|byte| *byte != 0) {
                    return invalid("a NUL byte in a name");
                }
                self.long_name = Some(bytes[..end].to_vec());
            }
            b'x' => self.read_pax(bytes, true)?,
            // A global header may not name files, and a long link name is refused with its link.
            b'g' => self.read_pax(bytes, false)?,
            _ => {}
        }
        Ok(())
    }

    fn read_pax(&mut self, mut bytes: &[u8], for_entry: bool) -> Result<(), Invalid> {
        while !bytes.is_empty() {
            let Some((key, value, rest)) = pax_record(bytes) else {
                return invalid("a broken PAX header");
            };
            bytes = rest;
            match key {
                b"path" if for_entry => {
                    if value.contains(&0) {
                        return invalid("a NUL byte in a name");
                    }
                    self.pax_name = Some(value.to_vec());
                }
                b"size" if for_entry => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    let Some(size) = size else {
                        return invalid("a broken PAX size");
                    };
                    self.pax_size = Some(size);
                }
                b"path" | b"size" | b"linkpath" => return invalid("a PAX header that applies to several entries"),
                key if key.starts_with(b"GNU.sparse.") => return invalid("a sparse file"),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_entry(&self, kind: u8, size: u64) -> Result<Entry, Invalid> {
        let raw = match (&self.pax_name, &self.long_name) {
            (Some(name), _) | (None, Some(name)) => name.clone(),
            (None, None) => self.header_name()?,
        };
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let size = self.pax_size.unwrap_or(size);
        let is_directory = match kind {
            b'0' | b'7' => false,
            // Before ustar a directory was a file whose name ends so.
            0 => raw.ends_with(b"/"),
            b'5' => true,
            b'1' => return invalid(format!("{shown}: a hard link")),
            b'2' => return invalid(format!("{shown}: a symbolic link")),
            b'3' | b'4' => return invalid(format!("{shown}: a device")),
            b'6' => return invalid(format!("{shown}: a FIFO")),
            _ => return invalid(format!("{shown}: neither a regular file nor a directory")),
        };
        let name = clean_name(&raw)?;
        if name.is_empty() && !is_directory {
            return invalid("a file without a name");
        }
        if !is_directory && raw.ends_with(b"/") {
            return invalid(format!("{shown}: a file with the name of a directory"));
        }
        if is_directory && size != 0 {
            return invalid(format!("{shown}: a directory with content"));
        }
        if size > i64::MAX as u64 {
            return invalid(format!("{shown}: an impossible size"));
        }
        let mode = number(&self.header[100..108])? as u32 & 0o777;
        Ok(Entry {
            name,
            is_directory,
            mode,
            size,
        })
    }

    fn header_name(&self) -> Result<Vec<u8>, Invalid> {
        let name = field(&self.header[0..100])?;
        // GNU's own format has other fields where ustar has the prefix.
        if &self.header[257..263] != b"ustar\0" {
            return Ok(name.to_vec());
        }
        let prefix = field(&self.header[345..500])?;
        if prefix.is_empty() {
            return Ok(name.to_vec());
        }
        Ok([prefix, b"/", name].concat())
    }
}

fn split(input: &[u8], left: u64) -> (&[u8], &[u8]) {
    input.split_at(usize::try_from(left).map_or(input.len(), |left| left.min(input.len())))
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn padding_state(left: u64) -> State {
    if left == 0 {
        State::Header
    } else {
        State::Padding { left }
    }
}

/// A field that ends with its first NUL; bytes after that which are not NUL are not honest.
fn field(bytes: &[u8]) -> Result<&[u8], Invalid> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    if bytes[end..].iter().any(|byte| *byte != 0) {
        return invalid("a NUL byte in a name");
    }
    Ok(&bytes[..end])
}

/// A number in octal digits, or in GNU's base 256.
fn number(bytes: &[u8]) -> Result<u64, Invalid> {
    if bytes[0] & 0x80 != 0 {
        let (high, low) = bytes.split_at(bytes.len().saturating_sub(8));
        let too_large = high
            .iter()
            .enumerate()
            .any(|(index, byte)| *byte != if index == 0 { 0x80 } else { 0 });
        if too_large {
            return invalid("a number that is too large");
        }
        let first = if high.is_empty() { low[0] & 0x7f } else { low[0] };
        return Ok(low[1..]
            .iter()
            .fold(u64::from(first), |number, byte| number << 8 | u64::from(*byte)));
    }
    let digits = bytes.iter().copied().skip_while(|byte| *byte == b' ');
    let mut value: u64 = 0;
    for byte in digits.take_while(|byte| !matches!(byte, 0 | b' ')) {
        if !(b'0'..=b'7').contains(&byte) {
            return invalid("a broken number in a header");
        }
        value = value << 3 | u64::from(byte - b'0');
    }
    Ok(value)
}

fn check_sum(header: &[u8]) -> Result<(), Invalid> {
    let expected = number(&header[148..156])?;
    let bytes = header
        .iter()
        .enumerate()
        .map(|(index, byte)| if (148..156).contains(&index) { b' ' } else { *byte });
    if bytes.map(u64::from).sum::<u64>() == expected {
        Ok(())
    } else {
        invalid("a wrong checksum")
    }
}

/// Key, value and what follows of one `LENGTH KEY=VALUE\n`.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

fn clean_name(raw: &[u8]) -> Result<Vec<u8>, Invalid> {
    let shown = || String::from_utf8_lossy(raw).into_owned();
    if raw.is_empty() {
        return invalid("an empty name");
    }
    if raw.starts_with(b"/") {
        return invalid(format!("{}: an absolute name", shown()));
    }
    if raw.len() > MAX_PATH_BYTES {
        return invalid("a name that is too long");
    }
    let mut name = Vec::with_capacity(raw.len());
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return invalid(format!("{}: a name with ..", shown())),
            part if part.len() > MAX_COMPONENT_BYTES => return invalid("a name that is too long"),
            part => {
                if !name.is_empty() {
                    name.push(b'/');
                }
                name.extend_from_slice(part);
            }
        }
    }
    Ok(name)
}
