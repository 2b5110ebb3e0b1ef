"""Bad input in one table: each row is a command, and what its one line must say.

What a clumsy user types, what an attacker leaves lying about, and what a disk does by itself. Every
command must end with status 2, or 1 for a failure, with one line on the standard error stream, in
less than five seconds, and leave every file that was there as it was.
"""
import contextlib
import io
import os
import socket
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, features
from reliability import command, expect_refused, files_of

from manifoldgd.config.presets import DistillConfig
from manifoldgd.core import STRAY, clear_strays, is_unused, replacing, temporary_name
from manifoldgd.data.images import FolderImages, Unreadable
from manifoldgd.distillation.distill import distill
from manifoldgd.errors import InputError
from manifoldgd.evaluation import accuracy, measurement

REAL = ("distill", "--preset", "random", "--ipc", 1)
DECODED = ("distill", "--preset", "decoded", "--ipc", 1, "--device", "cpu")
ESCAPE = "\x1b[31mred"
LONG = 255 * "a"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    "A folder of its own for every row, with something in it that must not be lost."
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    (tmp_path / "notes.csv").write_text("name,price\npears,3\n")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments, words):
    "Give a command, and check what it says and what it leaves."
    before = files_of(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expect_refused(command(*arguments), words)
    after = files_of(".")
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if name.endswith((".png", "manifest.json", "results.csv"))
                and name not in before]


# Numbers, words and names

NUMBERS = [
    ("--ipc", 0), ("--ipc", -1), ("--ipc", "1.5"), ("--ipc", "nan"), ("--ipc", 10**30),
    ("--ipc", "ten"), ("--seed", -1), ("--seed", 10**30), ("--seed", "1e3"),
    ("--strength", "nan"), ("--strength", "inf"), ("--strength", "1e300"),
    ("--bandwidth", 0), ("--bandwidth", "nan"), ("--bandwidth", "1e300"), ("--bandwidth", "-inf"),
    ("--start", "-.1"), ("--start", "nan"), ("--start", ".6"), ("--stop", 2),
    ("--num-inference-steps", 0), ("--num-inference-steps", 1), ("--num-inference-steps", 1001),
    ("--guidance-scale", -1), ("--guidance-scale", "nan"), ("--guidance-scale", "1e300"),
    ("--cfg-channels", 0), ("--cfg-channels", "none"), ("--n-points", 0), ("--n-neighbors", 0),
    ("--n-neighbors", 10**30), ("--tangent-dim", -1), ("--tangent-dim", 30),
    ("--tangent-dim", "nan"), ("--ridge", "nan"), ("--ridge", "1e300"), ("--projection", 2),
    ("--projection", "some"), ("--radius", "inf"), ("--radius-factor", "nan"),
    ("--anneal-steps", 0), ("--start-depth", -1), ("--start-depth", 10**30),
    ("--batch-size", 0), ("--batch-size", 10**30), ("--workers", 0), ("--workers", 10**9),
]


@pytest.mark.parametrize("name, value", NUMBERS)
def test_a_number_that_cannot_be_meant(name, value):
    done = command("distill", name, value)
    assert name[2:] in done.error or name[2:].replace("-", "_") in done.error
    expect_refused(done, "")
    assert not os.path.exists("runs")


WORDS = [
    ("--preset", "best"), ("--kernel", "gauss"), ("--scheduler", "plms"), ("--images", "all"),
    ("--trace", "maybe"), ("--bogus", "1"), ("--kernel",), ("--preset", ESCAPE),
    ("--device", "gpu"), ("--device", "meta"), ("--device", "cuda:99"), ("--device", "cpu:x"),
    ("--device", ESCAPE), ("--device", ""), ("--data", ""), ("--out", ""), ("--backbone", " "),
    ("--data", "~nobody-of-this-name/a"), ("--out", "~nobody-of-this-name"), ("--out", "a\0b"),
    ("--out", "\udcff"), ("--data", "\udcff"), ("--data", "nowhere"), ("--data", ESCAPE),
    ("--data", LONG), ("--data", 20 * f"{LONG}/"), ("--data", "loop"), ("--data", "pipe"),
    ("--data", "/dev/null"), ("--data", "notes.csv"), ("--data", "taken"), ("--data", "hf:"),
    ("--classes", " , "), ("--classes", "eleven"), ("--classes", ESCAPE),
    ("--named", "imagenet0"),
    ("--out", "taken"), ("--out", "notes.csv"), ("--out", "notes.csv/run"), ("--out", "pipe"),
    ("--out", "/dev/null"), ("--out", "/dev/null/run"), ("--out", "loop"), ("--out", "loop/run"),
    ("--out", LONG + "a"), ("--out", f"{ESCAPE}/{LONG}a"), ("--out", "/proc/run"),
    ("--out", "taken/thesis.txt"),
]


@pytest.mark.parametrize("arguments", WORDS)
def test_a_word_or_name_that_cannot_be_meant(arguments):
    refused((*REAL, *arguments), "")


@pytest.mark.parametrize("backbone", ["nowhere/at/all", "notes.csv", "taken", "pipe", "loop", LONG])
def test_a_backbone_that_cannot_be_meant(backbone):
    refused((*DECODED, "--backbone", backbone), "")


PRETRAIN = [
    ("--rotation", "nan"), ("--rotation", 181), ("--rotation", -1), ("--shift", "nan"),
    ("--shift", ".6"), ("--zoom", 5), ("--zoom", "nan"), ("--zoom", 1), ("--ema-decay", 2),
    ("--ema-decay", 1), ("--ema-decay", "nan"), ("--label-dropout", 1), ("--label-dropout", "nan"),
    ("--snr-gamma", 0), ("--snr-gamma", "inf"), ("--kl-weight", "nan"), ("--kl-weight", -1),
    ("--vae-learning-rate", 0), ("--vae-learning-rate", "nan"), ("--dit-learning-rate", 2),
    ("--minutes", 0), ("--minutes", "nan"), ("--minutes", "inf"), ("--held-out", ".6"),
    ("--image-size", 0), ("--image-size", 33), ("--image-size", 10**9), ("--channels", 2),
    ("--vae-widths", 7), ("--vae-widths", 0), ("--vae-widths", 10**9), ("--hidden-size", 33),
    ("--num-layers", 0), ("--num-layers", 10**9), ("--vae-batch-size", 0), ("--views", 0),
    ("--vae-steps", 0), ("--dit-steps", 10**30), ("--every", 0), ("--seed", -1),
    ("--device", "meta"), ("--out", "taken"), ("--out", "notes.csv"), ("--out", "notes.csv/model"),
    ("--out", LONG + "a"), ("--out", "loop"), ("--out", "/proc/model"), ("--out", "/dev/null"),
    ("--image-size", 4096, "--vae-batch-size", 65536), ("--dit-batch-size", 65536, "--hidden-size",
                                                        8192),
]


@pytest.mark.parametrize("arguments", PRETRAIN)
def test_a_pretraining_that_cannot_be_meant(arguments):
    refused(("pretrain", "--data", "digits", "--out", "model", *arguments), "")
    assert not os.path.exists("model") or is_unused("model")


OTHERS = [
    ("evaluate",), ("evaluate", "nowhere"), ("evaluate", "taken"), ("evaluate", "notes.csv"),
    ("evaluate", "pipe"), ("evaluate", "loop"), ("evaluate", LONG + "a"), ("evaluate", ""),
    ("evaluate", "taken", "--seeds", 0), ("evaluate", "taken", "--seeds", 10**9),
    ("evaluate", "taken", "--workers", 10**9), ("evaluate", "taken", "--protocol", "best"),
    ("evaluate", "taken", "--students", "ConvNet-99"), ("evaluate", "taken", "--out", "pipe"),
    ("metrics", "taken"), ("metrics", "taken", "--draws", 1), ("metrics", "taken", "--draws", 9999),
    ("metrics", "taken", "--out", "loop"), ("metrics", "taken", "--out", "/dev/zero"),
    ("report", "taken"), ("report", "taken", "--results", "nowhere.csv"), ("report", "nowhere"),
    ("export", "taken", "--format", "zip", "--to", "a"), ("export", "taken", "--to", "a"),
    ("export", "taken", "--format", "imagefolder", "--to", "a"), ("polish",), (),
    ("export", "taken", "--format", "ddranking", "--to", "a", "--size", 10**9),
]


@pytest.mark.parametrize("arguments", OTHERS)
def test_a_command_that_cannot_be_meant(arguments):
    refused(arguments, "")


# Images


def encoded(image, kind, **options):
    "The bytes of an image as a file."
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_size(width, height):
    "The beginning of a PNG file that claims a size."
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk


COLOR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
WHOLE = {kind: encoded(COLOR, kind) for kind in ("png", "jpeg", "gif", "bmp", "tiff")}
FILES = {
    "nothing": b"",
    "words": b"not an image",
    "a page": b"<!DOCTYPE html><html></html>",
    "a drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "zeros": bytes(1000),
    "PostScript": encoded(COLOR, "eps"),
    "PostScript by hand": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
    "PDF": b"%PDF-1.4\n%%EOF",
    "PCX": encoded(COLOR, "pcx"),
    "PPM": encoded(COLOR, "ppm"),
    "TGA": encoded(COLOR, "tga"),
    "SGI": encoded(COLOR, "sgi"),
    "ICO": encoded(COLOR, "ico"),
    "IM": encoded(COLOR, "im"),
    "MSP": encoded(COLOR.convert("1"), "msp"),
    "DDS": encoded(COLOR, "dds"),
    "XBM": encoded(COLOR.convert("1"), "xbm"),
    "floats": encoded(Image.new("F", (8, 8), .5), "tiff"),
    "32 bits": encoded(Image.new("I", (8, 8), 200), "tiff"),
    "a strip": encoded(Image.new("L", (1, 500)), "png"),
    "too wide": png_of_size(40_000, 1_000),
    "too many pixels": png_of_size(20_000, 20_000),
    "a bomb": png_of_size(2**31 - 1, 2**31 - 1),
    "no pixels": png_of_size(0, 0),
    "half a PNG": WHOLE["png"][:len(WHOLE["png"]) // 2],
    "half a JPEG": WHOLE["jpeg"][:len(WHOLE["jpeg"]) // 2],
    "half a GIF": WHOLE["gif"][:len(WHOLE["gif"]) // 2],
    "half a BMP": WHOLE["bmp"][:len(WHOLE["bmp"]) // 2],
    "half a TIFF": WHOLE["tiff"][:len(WHOLE["tiff"]) // 2],
    "a TIFF's first bytes": WHOLE["tiff"][:9],
    "a changed PNG": WHOLE["png"][:60] + b"?" + WHOLE["png"][61:],
    "a header alone": b"\x89PNG\r\n\x1a\n",
    "a JPEG's first bytes": b"\xff\xd8\xff\xe0",
}
if features.check("webp"):
    FILES["half a WEBP"] = encoded(COLOR, "webp")[:60]


def make_data(*files):
    "Write a small image under each of the names."
    for file in files:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        COLOR.save(file)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_image(place, name):
    make_data("data/cat/a.png", "data/dog/a.png")
    (place / "data/cat/b.png").write_bytes(FILES[name])
    refused((*REAL, "--data", "data", "--strict"), "b.png")


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "loop", "nowhere", "socket"])
def test_a_name_that_is_no_file(place, kind):
    make_data("data/cat/a.png", "data/dog/a.png")
    path = place / "data/cat/b.png"
    targets = {"link to a pipe": place / "pipe", "device": "/dev/zero", "loop": "b.png",
               "nowhere": "no/such/file"}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind("data/cat/b.png")
    else:
        path.symlink_to(targets[kind])
    refused((*REAL, "--data", "data", "--strict"), "b.png")


def test_nothing_of_the_others_is_left_out_without_a_word(place):
    make_data("data/cat/a.png", "data/dog/a.png")
    (place / "data/cat/b.png").write_bytes(FILES["floats"])
    with pytest.warns(UserWarning, match="1 of 3 training .* and are left out: cat/b.png"):
        done = command(*REAL, "--data", "data", "--out", "run")
    assert done.status == 0, done.error


LAYOUTS = {
    "only test and val": ["data/test/1.png", "data/val/2.png"],
    "splits without train": ["data/test/cat/1.png", "data/val/cat/2.png"],
    "a class called train": ["data/train/1.png", "data/car/2.png", "data/plane/3.png"],
    "a train that is a split or a class": ["data/train/a/1.png", "data/car/2.png"],
    "a class called Test": ["data/Test/1.png", "data/car/2.png"],
    "a class called valid": ["data/valid/1.png", "data/car/2.png"],
    "images without classes": ["data/train/1.png"],
    "images at the top": ["data/1.png"],
    "a dataset in a folder": ["data/set/train/a/1.png", "data/set/test/a/2.png"],
    "names that differ in case": ["data/cat/1.png", "data/Cat/2.png"],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_folders_that_could_be_read_in_two_ways(name):
    make_data(*LAYOUTS[name])
    refused((*REAL, "--data", "data"), "")


@pytest.mark.parametrize("table", [
    "1.png\n", "1.png\t../../evil\n", "../1.png\tcat\n", "2.png\tcat\n", "\tcat\n",
    "1.png\t.hidden\n", b"\xff\tcat\n", b"1.png\tc\xffat\n",
])
def test_a_table_of_classes_that_is_wrong(place, table):
    make_data("data/train/cat/1.png", "data/train/images/1.png")
    table = table if isinstance(table, bytes) else table.encode()
    (place / "data/train/val_annotations.txt").write_bytes(table)
    refused((*REAL, "--data", "data"), "")


def test_a_class_folder_whose_link_leads_nowhere(place):
    make_data("data/cat/1.png", "data/dog/1.png")
    (place / "data/cow").symlink_to("/no/such/disk/cow")
    refused((*REAL, "--data", "data"), "cow leads nowhere")


def test_a_name_that_is_no_text(place):
    make_data("data/cat/1.png", "data/dog/1.png")
    os.rename(b"data/cat/1.png", b"data/cat/\xff.png")
    refused((*REAL, "--data", "data"), "names of files in UTF-8")


def test_a_class_with_fewer_images_than_asked_for():
    make_data("data/cat/1.png", "data/dog/1.png")
    refused(("distill", "--preset", "random", "--ipc", 2, "--data", "data"), "`ipc`")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"# nothing\n", b"unicorn\n"])
def test_a_file_of_classes_that_is_wrong(place, content):
    make_data("data/cat/1.png", "data/dog/1.png")
    (place / "classes.txt").write_bytes(content)
    refused((*REAL, "--data", "data", "--classes", "classes.txt"), "")


# Tables


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run of real digits."
    out = tmp_path_factory.mktemp("made") / "run"
    distill(DistillConfig(preset="random", ipc=1, out=str(out)), progress=False)
    return out


HEADER = ("run,data,preset,scheduler,ipc,generation_seed,training_seed,student,protocol,top1_last,"
          "top1_best,split,n_test,seconds,group,images_fingerprint,test_fingerprint,settings,machine,"
          "torch,manifoldgd,commit\n")
ROW = "a,digits,random,,1,0,0,ConvNet-3,digits-quick,70.0,,test,360,1.0,g,i,t,{},m,2,1,c\n"
TABLES = {
    "nothing": ("", 1),
    "another table": ("name,price\npears,3\n", 1),
    "another separator": (HEADER.replace(",", ";"), 1),
    "a column twice": (HEADER.replace("run,", "run,run,"), 1),
    "a column less": (HEADER.replace("commit", "comment"), 1),
    "a line cut off": (HEADER + ROW + ROW[:40], 3),
    "no end": (HEADER + ROW.rstrip("\n"), 2),
    "a cell more": (HEADER + ROW + ROW.replace("a,", "a,b,", 1) + ROW, 3),
    "a quote that stays open": (HEADER + ROW + '"' + ROW, 3),
    "a word for a number": (HEADER + ROW.replace("70.0", "seventy"), 2),
    "a number that is none": (HEADER + ROW.replace("70.0", "nan"), 2),
    "no number": (HEADER + ROW.replace("70.0", ""), 2),
    "an endless number": (HEADER + ROW.replace("70.0", "1e999"), 2),
    "a number too long": (HEADER + ROW.replace(",360,", f",{10**30},"), 2),
    "settings that are none": (HEADER + ROW + ROW.replace("{}", "{"), 3),
    "settings of another kind": (HEADER + ROW.replace("{}", "[]"), 2),
    "settings too deep": (HEADER + ROW.replace("{}", 5000 * "["), 2),
    "no text": (HEADER + ROW.replace("a,", "\0,", 1), 2),
    "conflict marks": (HEADER + "<<<<<<< HEAD\n" + ROW, 2),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_damaged(place, run, name):
    text, line = TABLES[name]
    (place / "results.csv").write_text(text)
    words = f"results.csv to be a table of results, but it could not be read (line {line}"
    refused(("evaluate", run), words)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00r", WHOLE["png"], HEADER.encode("utf-16")])
def test_a_table_that_is_no_text(place, run, content):
    (place / "metrics.csv").write_bytes(content)
    refused(("metrics", run), "metrics.csv to be a table of metrics, but it could not be read (")


@pytest.mark.parametrize("out", ["taken", "pipe", "/dev/null", "loop", "notes.csv/a.csv",
                                 "notes.csv", f"{LONG}a", "/proc/table.csv", "taken/"])
@pytest.mark.parametrize("name", ["evaluate", "metrics"])
def test_a_table_that_cannot_be_written_is_found_first(run, monkeypatch, name, out):
    def train(*arguments, **settings):
        pytest.fail("something was trained")

    monkeypatch.setattr(accuracy, "train_student", train)
    monkeypatch.setattr(measurement, "train_student", train)
    refused((name, run, "--out", out), "")


# The disk and the home


@pytest.mark.parametrize("cache", ["~nobody-of-this-name/a", "notes.csv", "loop", "/proc/cache"])
def test_a_cache_that_cannot_be_used(monkeypatch, cache):
    monkeypatch.setenv("MANIFOLDGD_CACHE", cache)
    refused((*DECODED, "--classes", "1,2"), "")


def test_no_home(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("MANIFOLDGD_CACHE", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    refused(("distill", "--data", "~/a"), "home folder")
    make_data("data/cat/1.png", "data/dog/1.png")
    refused((*REAL, "--data", "data"), "MANIFOLDGD_CACHE")


def test_a_home_is_written_out(monkeypatch, place):
    make_data("house/data/cat/1.png", "house/data/dog/1.png")
    monkeypatch.setenv("HOME", str(place / "house"))
    done = command(*REAL, "--data", "~/data", "--out", "~/run")
    assert done.status == 0, done.error
    assert (place / "house/run/manifest.json").exists()


def test_a_fault_of_the_program_is_one_line_too(monkeypatch):
    def broken(*arguments):
        raise AssertionError("<Thing object at 0x7f00>\n\x1b[31mred")

    monkeypatch.setattr("manifoldgd.distillation.distill.distill", broken)
    done = command("distill")
    assert (done.status, len(done.lines)) == (1, 1)
    assert "fault of the program: AssertionError: <Thing> \\x1b[31mred" in done.error
    monkeypatch.setenv("MANIFOLDGD_TRACEBACK", "1")
    with pytest.raises(AssertionError):
        command("distill")


@pytest.mark.parametrize("error, status, words", [
    (MemoryError(), 1, "more memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "more memory"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), 1, "disk is full"),
    (BrokenPipeError(32, "Broken pipe"), 1, "Broken pipe"),
    (TimeoutError("The lock is held"), 1, "The lock is held"),
    (RecursionError("too deep"), 1, "too deep"),
])
def test_what_a_library_raises_is_one_line(monkeypatch, error, status, words):
    def broken(*arguments):
        raise error

    monkeypatch.setattr("manifoldgd.distillation.distill.distill", broken)
    done = command("distill")
    assert (done.status, len(done.lines)) == (status, 1)
    assert words in done.error


# Temporary files


def test_a_planted_link_is_not_followed(place):
    (place / "target").write_text("root's")
    (place / "out.json").symlink_to("target")
    with replacing(place / "out.json") as temporary:
        temporary.write_text("ours")
    assert (place / "target").read_text() == "root's"
    assert not (place / "out.json").is_symlink()


def test_the_mode_is_that_of_an_ordinary_or_the_old_file(place):
    before = os.umask(0o027)
    try:
        with replacing(place / "new") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert (place / "new").stat().st_mode & 0o777 == 0o640
    os.chmod(place / "new", 0o604)
    with replacing(place / "new") as temporary:
        temporary.write_text("newer")
    assert (place / "new").stat().st_mode & 0o777 == 0o604


def test_a_name_of_255_bytes_can_be_written(place):
    with replacing(place / LONG) as temporary:
        temporary.write_text("long")
    assert (place / LONG).read_text() == "long"


def test_only_old_strays_of_ours_are_cleared(place):
    folder = place / "folder"
    folder.mkdir()
    names = [".keep.tmp", ".a.png.47.tmp", ".manifoldgd-notes.tmp", ".manifoldgd-0123456789abcdef"]
    old = [temporary_name(folder / "a"), *(folder / name for name in names)]
    for path in old:
        path.write_text("half")
        os.utime(path, (0, 0))
    stray = temporary_name(folder / "b")
    stray.mkdir()
    (stray / "inside").write_text("half an export")
    os.utime(stray, (0, 0))
    young = temporary_name(folder / "c")
    young.write_text("somebody else's")
    clear_strays(folder)
    assert {p.name for p in folder.iterdir()} == {*names, young.name}
    assert STRAY.fullmatch(young.name)


def test_an_image_that_is_too_heavy_is_not_read(place):
    make_data("data/cat/1.png")
    with open("data/cat/2.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(Unreadable, match="it has more than 512 MiB"):
        FolderImages("data").raw(1)


def test_images_that_cannot_fit_into_memory_are_refused_first(place):
    make_data("data/cat/1.png")
    with pytest.raises(InputError, match="to fit into memory, but they take about"):
        FolderImages("data").images(size=10**6)
