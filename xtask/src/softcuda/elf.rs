//! What libraries need, and what an archive has.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use object::elf::{DT_NEEDED, FileHeader64, SHN_UNDEF};
use object::read::archive::ArchiveFile;
use object::read::elf::{Dyn, ElfFile64, FileHeader, Sym};
use object::{Endianness, Object, ObjectSymbol};

/// A symbol that a library wants from another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// The library and the version node, where the linker wrote them down.
    pub(super) from: Option<(String, String)>,
}

/// What a shared library wants.
pub(super) struct Wants {
    /// The libraries that it names.
    pub(super) libraries: BTreeSet<String>,
    pub(super) symbols: BTreeSet<Wanted>,
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// The names of the functions that an archive defines for others.
pub(super) fn archive_symbols(path: &Path) -> Result<BTreeSet<String>, String> {
    let bytes = read(path)?;
    let broken = |error: object::Error| format!("cannot read {}: {error}", path.display());
    let archive = ArchiveFile::parse(&*bytes).map_err(broken)?;
    let mut names = BTreeSet::new();
    for member in archive.members() {
        let data = member.and_then(|member| member.data(&*bytes)).map_err(broken)?;
        // Members may be other than objects: metadata.
        let Ok(object) = ElfFile64::<Endianness>::parse(data) else { continue };
        let defined = object.symbols().filter(|symbol| symbol.is_definition() && symbol.is_global());
        names.extend(defined.filter_map(|symbol| symbol.name().ok().map(str::to_string)));
    }
    Ok(names)
}

/// What the shared library at `path` wants; none if it is no such library.
pub(super) fn wants(path: &Path) -> Result<Option<Wants>, String> {
    let bytes = read(path)?;
    let Ok(header) = FileHeader64::<Endianness>::parse(&*bytes) else { return Ok(None) };
    let broken = |error: object::Error| format!("cannot read {}: {error}", path.display());
    let endian = header.endian().map_err(broken)?;
    let sections = header.sections(endian, &*bytes).map_err(broken)?;
    let mut wants = Wants { libraries: BTreeSet::new(), symbols: BTreeSet::new() };

    let strings = sections.symbols(endian, &*bytes, object::elf::SHT_DYNSYM).map_err(broken)?.strings();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if let Some((entries, _)) = sections.dynamic(endian, &*bytes).map_err(broken)? {
        for entry in entries.iter().filter(|entry| entry.tag32(endian) == Some(DT_NEEDED)) {
            let name = entry.string(endian, strings).map_err(broken)?;
            wants.libraries.insert(text(name));
        }
    }
    let symbols = sections.symbols(endian, &*bytes, object::elf::SHT_DYNSYM).map_err(broken)?;
    let versions = sections.versions(endian, &*bytes).map_err(broken)?;
    for (index, symbol) in symbols.enumerate() {
        if symbol.st_shndx(endian) != SHN_UNDEF {
            continue;
        }
        let name = text(symbol.name(endian, symbols.strings()).map_err(broken)?);
        if name.is_empty() {
            continue;
        }
        let mut from = None;
        if let Some(versions) = &versions {
            let version = versions.version(versions.version_index(endian, index)).map_err(broken)?;
            let file = version.and_then(|version| version.file().map(|file| (text(file), text(version.name()))));
            from = file;
        }
        wants.symbols.insert(Wanted { name, from });
    }
    Ok(Some(wants))
}
