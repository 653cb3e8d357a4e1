//! Writes kernel executables: headers, a debug directory with its record, an export directory.

/// `IMAGE_FILE_MACHINE_I386`.
pub const I386: u16 = 0x014c;
/// `IMAGE_FILE_MACHINE_AMD64`.
pub const AMD64: u16 = 0x8664;

const HEADERS: u32 = 0x400;
/// Where the sections begin in memory and, packed, in the file.
const TEXT: u32 = 0x1000;
/// `.rdata`: debug directory at its start, the record behind it.
pub const RDATA: u32 = 0x2000;
/// `.edata`: export directory at its start, the name behind it.
pub const EDATA: u32 = 0x3000;
/// `.data`: the kernel's variables.
pub const DATA: u32 = 0x4000;
/// Bytes of `.data`.
pub const DATA_SIZE: u32 = 0x2000;
/// Bytes of the image in memory.
pub const IMAGE_SIZE: u32 = DATA + DATA_SIZE;

/// Which PDB an executable names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// None at all.
    None,
    /// RSDS: GUID as the file has it, age, path.
    Rsds([u8; 16], u32, String),
    /// NB10: time stamp, age, path.
    Nb10(u32, u32, String),
}

/// An executable to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pe {
    /// `IMAGE_FILE_MACHINE_*`.
    pub machine: u16,
    /// Where it wants to be.
    pub image_base: u64,
    /// Which PDB it names.
    pub record: Record,
    /// The name it exports.
    pub export_name: Option<String>,
    /// Content of `.data`, by offset.
    pub data: Vec<(u32, Vec<u8>)>,
}

/// What stands in a debug directory beside the record: kind (`IMAGE_DEBUG_TYPE_*`) and content.
pub type OtherEntry = (u32, Vec<u8>);

impl Pe {
    /// As a loader lays it out: [`IMAGE_SIZE`] bytes.
    pub fn mapped(&self) -> Vec<u8> {
        let mut image = vec![0; IMAGE_SIZE as usize];
        self.headers(&mut image);
        // `ret`, for something to be there.
        image[TEXT as usize] = 0xc3;
        self.write_record(&mut image);
        if let Some(name) = &self.export_name {
            // IMAGE_EXPORT_DIRECTORY has 40 bytes; the name's address is its fourth word.
            put(&mut image, EDATA + 12, &(EDATA + 40).to_le_bytes());
            put(&mut image, EDATA + 40, name.as_bytes());
        }
        for (offset, bytes) in &self.data {
            put(&mut image, DATA + offset, bytes);
        }
        image
    }

    /// As the linker wrote it.
    pub fn file(&self) -> Vec<u8> {
        file_of(&self.mapped())
    }

    /// As the linker wrote it, with `others` in the debug directory before the record: `VC_FEATURE`, `POGO`,
    /// `REPRO` and the like, and older records.
    pub fn file_among(&self, others: &[OtherEntry]) -> Vec<u8> {
        let mut image = self.mapped();
        let directories = 0x80 + 24 + if self.machine == AMD64 { 112 } else { 96 };
        let count = u32::try_from(others.len() + 1).expect("few entries");
        put(&mut image, directories + 8 * 6 + 4, &(28 * count).to_le_bytes());
        // The own entry goes last; the record moves out of the way of the entries.
        let own = image[RDATA as usize..RDATA as usize + 0x400].to_vec();
        put(&mut image, RDATA, &[0; 0x400]);
        put(&mut image, RDATA + 0x400, &own);
        let mut entry = own[..28].to_vec();
        entry[20..24].copy_from_slice(&(RDATA + 0x400 + 28).to_le_bytes());
        entry[24..28].copy_from_slice(&(HEADERS + (RDATA - TEXT) + 0x400 + 28).to_le_bytes());
        put(&mut image, RDATA + 28 * (count - 1), &entry);
        let mut at = RDATA + 0x800;
        for (index, (kind, content)) in (0..).zip(others) {
            let length = u32::try_from(content.len()).expect("small content");
            for (place, value) in [(12, *kind), (16, length), (20, at), (24, HEADERS + at - TEXT)] {
                put(&mut image, RDATA + 28 * index + place, &u32::to_le_bytes(value));
            }
            put(&mut image, at, content);
            at += length.next_multiple_of(4);
        }
        file_of(&image)
    }

    fn headers(&self, image: &mut [u8]) {
        let wide = self.machine == AMD64;
        put(image, 0, b"MZ");
        let pe: u32 = 0x80;
        put(image, 0x3c, &pe.to_le_bytes());
        put(image, pe, b"PE\0\0");
        put(image, pe + 4, &self.machine.to_le_bytes());
        put(image, pe + 6, &4_u16.to_le_bytes());
        put(image, pe + 8, &0x4a5b_c6d7_u32.to_le_bytes());
        let optional_size: u16 = if wide { 112 + 128 } else { 96 + 128 };
        put(image, pe + 20, &optional_size.to_le_bytes());
        let optional = pe + 24;
        let magic: u16 = if wide { 0x20b } else { 0x10b };
        put(image, optional, &magic.to_le_bytes());
        if wide {
            put(image, optional + 24, &self.image_base.to_le_bytes());
        } else {
            let base = u32::try_from(self.image_base).expect("a base below 4 GiB");
            put(image, optional + 28, &base.to_le_bytes());
        }
        put(image, optional + 32, &0x1000_u32.to_le_bytes());
        put(image, optional + 36, &0x200_u32.to_le_bytes());
        put(image, optional + 56, &IMAGE_SIZE.to_le_bytes());
        put(image, optional + 60, &HEADERS.to_le_bytes());
        let directories = optional + if wide { 112 } else { 96 };
        put(image, directories - 4, &16_u32.to_le_bytes());
        if self.export_name.is_some() {
            put(image, directories, &EDATA.to_le_bytes());
            put(image, directories + 4, &0x80_u32.to_le_bytes());
        }
        if self.record != Record::None {
            put(image, directories + 8 * 6, &RDATA.to_le_bytes());
            put(image, directories + 8 * 6 + 4, &28_u32.to_le_bytes());
        }
        let mut at = optional + u32::from(optional_size);
        let mut offset = HEADERS;
        for (start, size, name) in sections() {
            put(image, at, name.as_bytes());
            for (place, value) in [
                (8, size),
                (12, start),
                (16, size),
                (20, offset),
                (36, 0x6800_0020),
            ] {
                put(image, at + place, &u32::to_le_bytes(value));
            }
            at += 40;
            offset += size;
        }
    }

    fn write_record(&self, image: &mut [u8]) {
        let mut record = Vec::new();
        match &self.record {
            Record::None => return,
            Record::Rsds(guid, age, path) => {
                record.extend_from_slice(b"RSDS");
                record.extend_from_slice(guid);
                record.extend_from_slice(&age.to_le_bytes());
                record.extend_from_slice(path.as_bytes());
            }
            Record::Nb10(stamp, age, path) => {
                record.extend_from_slice(b"NB10\0\0\0\0");
                record.extend_from_slice(&stamp.to_le_bytes());
                record.extend_from_slice(&age.to_le_bytes());
                record.extend_from_slice(path.as_bytes());
            }
        }
        record.push(0);
        // IMAGE_DEBUG_DIRECTORY: kind (2, CodeView), size, address, place in the file.
        let length = u32::try_from(record.len()).expect("a short path");
        let in_file = HEADERS + (RDATA - TEXT) + 28;
        for (place, value) in [(12, 2), (16, length), (20, RDATA + 28), (24, in_file)] {
            put(image, RDATA + place, &u32::to_le_bytes(value));
        }
        put(image, RDATA + 28, &record);
    }
}

/// The sections of a loaded image, one after the other behind its headers.
fn file_of(image: &[u8]) -> Vec<u8> {
    let mut file = image[..HEADERS as usize].to_vec();
    for (start, size, _) in sections() {
        file.extend_from_slice(&image[start as usize..(start + size) as usize]);
    }
    file
}

fn sections() -> [(u32, u32, &'static str); 4] {
    [
        (TEXT, 0x1000, ".text"),
        (RDATA, 0x1000, ".rdata"),
        (EDATA, 0x1000, "PAGE"),
        (DATA, DATA_SIZE, ".data"),
    ]
}

fn put(image: &mut [u8], at: u32, bytes: &[u8]) {
    let at = at as usize;
    image[at..at + bytes.len()].copy_from_slice(bytes);
}
