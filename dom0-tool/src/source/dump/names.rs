//! Files that people have and that hold guest memory in no form that is read in place, or none at all: by how
//! they begin.

use super::DumpError;
use super::file::ReadFile;

/// One kind of file.
struct Kind {
    /// Where its mark is.
    at: u64,
    mark: &'static [u8],
    what: &'static str,
    remedy: &'static str,
}

const fn kind(mark: &'static [u8], what: &'static str, remedy: &'static str) -> Kind {
    kind_at(0, mark, what, remedy)
}

const fn kind_at(at: u64, mark: &'static [u8], what: &'static str, remedy: &'static str) -> Kind {
    Kind {
        at,
        mark,
        what,
        remedy,
    }
}

const QEMU: &str = "`dump-guest-memory FILE` in QEMU's monitor writes a dump of the guest's memory";
const XEN: &str = "`xl dump-core DOMAIN FILE` writes a dump; of a guest that was saved `xl restore -p FILE` first, which leaves it paused";
const LIBVIRT: &str = "`virsh dump --memory-only DOMAIN FILE` writes a dump; of a guest that was saved `virsh restore --paused FILE` first";
const VMWARE: &str = "the memory is in the .vmem file beside it, which is raw (above 3 GiB with a hole); `vmss2core` makes a core of both";
const DISK: &str = "a disk holds no memory: take a dump of the guest";
const PROGRAM: &str = "give it no minidump: set Windows to write a complete memory dump, or take a dump of the guest from the host";
const FORENSIC: &str = "export the memory as raw with the tool that made it";
const PROGRAM_HIBERFIL: &str = "start Windows again, and take a dump of the guest from the host";
const CRASH: &str = "take the dump with a current kdump, or `dump-guest-memory FILE` in QEMU's monitor";

/// The longest marks first where one begins as another does.
const KINDS: &[Kind] = &[
    kind(
        b"LibvirtQemudSave",
        "a guest that libvirt saved (`virsh save`)",
        LIBVIRT,
    ),
    kind(b"LibvirtQemudPart", "a guest that libvirt began to save", LIBVIRT),
    kind(b"QEVM", "a QEMU migration stream", QEMU),
    kind(b"Xen saved domain", "a guest that Xen saved (`xl save`)", XEN),
    kind(b"LibxlFmt", "a stream of Xen's tools (libxl)", XEN),
    kind(
        b"\xff\xff\xff\xff\xff\xff\xff\xffXENF",
        "a stream of Xen's tools (libxc)",
        XEN,
    ),
    kind(b"XenSavedDomain", "a guest that XenServer saved", XEN),
    kind(b"LinuxGuestRecord", "a guest that Xen saved (`xm save`)", XEN),
    kind(
        b"\xd0\xbe\xd2\xbe",
        "VMware's state of a guest (.vmss, .vmsn)",
        VMWARE,
    ),
    kind(
        b"\xd1\xbe\xd2\xbe",
        "VMware's state of a guest (.vmss, .vmsn)",
        VMWARE,
    ),
    kind(
        b"\xd2\xbe\xd2\xbe",
        "VMware's state of a guest (.vmss, .vmsn)",
        VMWARE,
    ),
    kind(
        b"\xd3\xbe\xd2\xbe",
        "VMware's state of a guest (.vmss, .vmsn)",
        VMWARE,
    ),
    kind(
        b"\xd1\xba\xd1\xba",
        "VMware's state of a guest (.vmss, .vmsn)",
        VMWARE,
    ),
    kind(
        b"\x14\x20\x28\x01",
        "Hyper-V's state of a guest (.vmrs, .vmcx)",
        "have Windows in the guest write a complete memory dump, or take one from the host with LiveKd (`livekd -hvd NAME -o FILE`)",
    ),
    kind(
        b"\x7fVirtualBox SavedState",
        "VirtualBox's state of a guest (.sav)",
        "`VBoxManage debugvm NAME dumpvmcore --filename FILE` writes a dump of the guest",
    ),
    kind(b"HIBR", "Windows' hibernation file", PROGRAM_HIBERFIL),
    kind(b"hibr", "Windows' hibernation file", PROGRAM_HIBERFIL),
    kind(
        b"WAKE",
        "Windows' hibernation file, after a resume",
        PROGRAM_HIBERFIL,
    ),
    kind(
        b"wake",
        "Windows' hibernation file, after a resume",
        PROGRAM_HIBERFIL,
    ),
    kind(
        b"RSTR",
        "Windows' hibernation file, during a resume",
        PROGRAM_HIBERFIL,
    ),
    kind(b"MDMP", "a minidump of a program of Windows", PROGRAM),
    kind(b"EVF\x09\x0d\x0a\xff\0", "an image of EnCase (E01)", FORENSIC),
    kind(b"EVF2\x0d\x0a\x81\0", "an image of EnCase (Ex01)", FORENSIC),
    kind(b"LVF\x09\x0d\x0a\xff\0", "an image of EnCase (L01)", FORENSIC),
    kind(b"AFF10\x0d\x0a\0", "an image of AFF", FORENSIC),
    kind(b"HPAK", "a dump of FastDump (HPAK)", FORENSIC),
    kind(
        b"PK\x03\x04",
        "a ZIP archive, as AFF4 images are",
        "unpack it: `unzip FILE`; of an AFF4 image, export the memory as raw with the tool that made it",
    ),
    kind(
        b"makedumpfile\0",
        "a flattened dump of a version that is not known",
        "rearrange it with the makedumpfile that made it: `makedumpfile -R FILE < FLATTENED`",
    ),
    kind(b"DISKDUMP", "a dump of diskdump", CRASH),
    kind(b"\xed\x23\x8f\x61\x73\x01\x19\xa8", "a dump of LKCD", CRASH),
    kind(b"VMA\0", "a backup of Proxmox (vma)", DISK),
    kind(b"QFI\xfb", "a QEMU disk image (qcow2)", QEMU),
    kind(b"QED\0", "a QEMU disk image (qed)", DISK),
    kind(b"KDMV", "a disk image of VMware (vmdk)", DISK),
    kind(b"COWD", "a disk image of VMware (vmdk)", DISK),
    kind(b"# Disk DescriptorFile", "a disk image of VMware (vmdk)", DISK),
    kind(b"vhdxfile", "a disk image of Hyper-V (vhdx)", DISK),
    kind(b"conectix", "a disk image of Hyper-V (vhd)", DISK),
    kind_at(64, b"\x7f\x10\xda\xbe", "a disk image of VirtualBox (vdi)", DISK),
    kind(b"WithoutFreeSpace", "a disk image of Parallels", DISK),
    kind(b"WithouFreSpacExt", "a disk image of Parallels", DISK),
    kind(b"LUKS\xba\xbe", "an encrypted disk (LUKS)", DISK),
    kind_at(512, b"EFI PART", "a disk with a partition table (GPT)", DISK),
    kind_at(0x8001, b"CD001", "an image of a CD (ISO 9660)", DISK),
    kind(b"hsqs", "a file system (squashfs)", DISK),
    kind(b"XFSB", "a file system (XFS)", DISK),
    kind_at(0x1_0040, b"_BHRfS_M", "a file system (btrfs)", DISK),
    kind(
        b"\x1f\x8b\x08",
        "compressed (gzip)",
        "unpack it: `gzip -dk FILE.gz`",
    ),
    kind(b"\xfd7zXZ\0", "compressed (xz)", "unpack it: `xz -dk FILE.xz`"),
    kind(
        b"\x5d\0\0\x80\0",
        "compressed (lzma)",
        "unpack it: `xz -dk --format=lzma FILE.lzma`",
    ),
    kind(
        b"\x5d\0\0\0\x04",
        "compressed (lzma)",
        "unpack it: `xz -dk --format=lzma FILE.lzma`",
    ),
    kind(
        b"\x28\xb5\x2f\xfd",
        "compressed (zstd)",
        "unpack it: `zstd -d FILE.zst`",
    ),
    kind(b"BZh", "compressed (bzip2)", "unpack it: `bzip2 -dk FILE.bz2`"),
    kind(
        b"\x04\x22\x4d\x18",
        "compressed (lz4)",
        "unpack it: `lz4 -d FILE.lz4 FILE`",
    ),
    kind(
        b"\x02\x21\x4c\x18",
        "compressed (lz4, its old form)",
        "unpack it: `lz4 -d FILE.lz4 FILE`",
    ),
    kind(
        b"\x89LZO\0\x0d\x0a\x1a\x0a",
        "compressed (lzop)",
        "unpack it: `lzop -dk FILE.lzo`",
    ),
    kind(b"\xff\x06\0\0sNaPpY", "compressed (snappy)", "unpack it first"),
    kind(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it: `7z x FILE`"),
    kind(b"Rar!\x1a\x07", "a RAR archive", "unpack it first"),
    kind(b"MSCF", "a cabinet of Windows", "unpack it: `cabextract FILE`"),
    kind_at(257, b"ustar", "a tar archive", "unpack it: `tar -xf FILE`"),
    kind(b"!<arch>\n", "an archive (ar)", "unpack it: `ar x FILE`"),
    kind(
        b"Microsoft C/C++ MSF 7.00\r\n",
        "a PDB",
        "name it with --pdb, and the dump with --dump",
    ),
];

/// Whether the file begins with a boot sector and a partition table in it (MBR). Two bytes alone would be no
/// sign: each of the four entries has to be one, and one of them a partition.
fn is_partitioned(file: &ReadFile) -> bool {
    let mut sector = [0; 512];
    let entries = || (446..510).step_by(16);
    file.read(0, &mut sector)
        && sector[510..] == [0x55, 0xaa]
        && entries().all(|at| matches!(sector[at], 0 | 0x80))
        && entries().any(|at| sector[at + 4] != 0 && sector[at + 12..at + 16] != [0; 4])
}

/// What the file is, if it begins as one of these does.
pub(super) fn named(file: &ReadFile) -> Option<DumpError> {
    if is_partitioned(file) {
        return Some(DumpError::OtherFormat {
            what: "a disk with a partition table (MBR)",
            remedy: DISK,
        });
    }
    KINDS.iter().find_map(|kind| {
        let mut bytes = vec![0; kind.mark.len()];
        (file.read(kind.at, &mut bytes) && bytes == kind.mark).then_some(DumpError::OtherFormat {
            what: kind.what,
            remedy: kind.remedy,
        })
    })
}
