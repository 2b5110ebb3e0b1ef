"""What a latent bank keeps, when it encodes again, and what its fingerprints look up."""
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from manifoldgd.backbones import backbone as backbone_page
from manifoldgd.backbones import latents as page
from manifoldgd.backbones.backbone import (
    fingerprint_of_files,
    hash_networks,
    load_backbone,
    tiny_backbone,
)
from manifoldgd.backbones.latents import (
    LatentBank,
    Shard,
    ShardedBank,
    crop_of,
    encode,
    free_bytes,
    latent_bank,
    threads_that_fit,
    usual_batch_size,
)
from manifoldgd.data.classes import ImageClass
from manifoldgd.data.images import (
    ArrayImages,
    FolderImages,
    class_fingerprints,
    halve_and_crop,
    resize_and_crop,
)
from manifoldgd.errors import InputError

HOUR_AGO = time.time() - 3600


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache of its own for each test."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images():
    "Ten small gray images of two classes, in turn."
    return array_images([0, 1] * 5, "a", "b")


@pytest.fixture
def folder(tmp_path):
    "Nine images of three classes as files that are an hour old."
    generator = np.random.default_rng(1)
    for i in range(9):
        path = tmp_path / "photos" / "xyz"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        os.utime(path, (HOUR_AGO, HOUR_AGO))
    return tmp_path / "photos"


@pytest.fixture
def seen(monkeypatch):
    "The names of the files whose bytes are read."
    names, raw = [], FolderImages.raw

    def read(self, i):
        names.append(self.files[i])
        return raw(self, i)

    monkeypatch.setattr(FolderImages, "raw", read)
    return names


def array_images(labels, *folders):
    "Random gray images, always the same."
    arrays = np.random.default_rng(0).integers(0, 256, (len(labels), 20, 20), dtype=np.uint8)
    return ArrayImages(arrays, labels, [ImageClass(f, f) for f in folders], "small")


def files_of(cache, kind="latents"):
    "The files of a cache, with what tells whether they are still the same."
    found = sorted((cache / kind).iterdir()) if (cache / kind).exists() else []
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def quiet_bank(data, backbone=None, **options):
    "The bank of some images, without a progress bar."
    return latent_bank(backbone or tiny_backbone(), data, progress=False, **options)


# What is stored

def test_a_bank_does_not_depend_on_the_batch_size(images, cache):
    whole = quiet_bank(images, batch_size=10).latents
    for name in files_of(cache):
        (cache / "latents" / name).unlink()
    parts = quiet_bank(images, batch_size=3)
    assert torch.allclose(whole, parts.latents, atol=1e-5)
    assert torch.equal(parts.labels, images.labels)


def test_a_bank_is_float32_whatever_the_vae_computes_in(images):
    tiny = tiny_backbone()
    tiny.vae.to(torch.bfloat16)
    bank = quiet_bank(images, tiny)
    assert bank.latents.dtype == torch.float32
    single = encode(tiny_backbone().vae, images.images(size=16))
    assert torch.allclose(bank.latents, single, atol=.05)


def test_the_order_is_that_of_the_images(images):
    bank = quiet_bank(images)
    in_memory = LatentBank(encode(tiny_backbone().vae, images.images(size=16)), images.labels)
    assert torch.allclose(bank.latents, in_memory.latents, atol=1e-5)
    for c in range(2):
        assert torch.equal(bank.of_class(c), bank.latents[images.labels == c])
        assert torch.allclose(bank.of_class(c), in_memory.of_class(c), atol=1e-5)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_change_no_bit(images, workers):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each thread of the bank has
    alone = [encode(tiny_backbone().vae, images.images(part, 16))
             for part in images.of_class(1).split(2)]
    torch.set_num_threads(threads)
    bank = quiet_bank(images, batch_size=2, workers=workers)
    assert torch.equal(bank.of_class(1), torch.cat(alone))


def test_other_classes_change_no_bit(images, cache):
    together = quiet_bank(images).of_class(0)
    before = files_of(cache)
    alone = ArrayImages(images.arrays[::2], [0] * 5, images.classes[:1], "other", images.files[::2])
    assert torch.equal(quiet_bank(alone).of_class(0), together)
    assert files_of(cache) == before


def test_a_class_is_read_without_the_others(images):
    bank = quiet_bank(images)
    bank.shards[0].path.unlink()
    assert bank.of_class(1).shape == (5, 4, 8, 8)


def test_what_is_read_can_be_written_to(images):
    bank = quiet_bank(images)
    before = bank.of_class(0)
    bank.of_class(0).zero_()
    assert torch.equal(bank.of_class(0), before)


def test_a_latent_takes_four_bytes_a_number(cache):
    images = array_images([0] * 500, "a")
    [shard] = quiet_bank(images).shards
    assert 0 < shard.path.stat().st_size - 500 * 4 * 8 * 8 * 4 < 500


def test_torch_has_its_threads_again(images):
    before = torch.get_num_threads()
    quiet_bank(images, workers=3)
    assert torch.get_num_threads() == before


# When it encodes again

def test_only_the_class_of_a_changed_file_is_encoded_again(folder, cache, seen):
    quiet_bank(FolderImages(folder))
    before = files_of(cache)
    Image.new("RGB", (20, 24)).save(folder / "y/4.png")
    seen.clear()
    quiet_bank(FolderImages(folder))
    assert {name[0] for name in seen} == {"y"}
    assert len(set(files_of(cache)) - set(before)) == 1
    assert before.items() <= files_of(cache).items()


@pytest.mark.parametrize("change", ["rename", "remove", "add"])
def test_names_are_part_of_a_class(folder, cache, change):
    quiet_bank(FolderImages(folder))
    path = folder / "z/2.png"
    if change == "add":
        (folder / "z/new.png").write_bytes(path.read_bytes())
    elif change == "rename":
        path.rename(folder / "z/new.png")
    else:
        path.unlink()
    bank = quiet_bank(FolderImages(folder))
    assert len(files_of(cache)) == 4
    assert len(bank.of_class(2)) == {"add": 4, "rename": 3, "remove": 2}[change]


def test_a_moved_dataset_is_not_encoded_again(folder, cache):
    quiet_bank(FolderImages(folder))
    before = files_of(cache)
    quiet_bank(FolderImages(folder.rename(folder.with_name("moved"))))
    assert files_of(cache) == before


def test_a_touched_file_is_not_encoded_again(folder, cache):
    quiet_bank(FolderImages(folder))
    before = files_of(cache)
    os.utime(folder / "x/0.png")
    quiet_bank(FolderImages(folder))
    assert files_of(cache) == before


def test_the_transformer_does_not_matter(images, cache):
    quiet_bank(images)
    before = files_of(cache)
    other = tiny_backbone()
    other.transformer = tiny_backbone(seed=1).transformer
    quiet_bank(images, other)
    assert files_of(cache) == before


def test_the_vae_and_its_scale_matter(images, cache):
    quiet_bank(images)
    quiet_bank(images, tiny_backbone(seed=1))
    scaled = tiny_backbone()
    scaled.vae.register_to_config(scaling_factor=.25)
    quiet_bank(images, scaled)
    assert len(files_of(cache)) == 6


def spoil(shard, how):
    "Put something else in the place of a shard."
    right = shard.read()
    data, size = {"latents": torch.zeros(shard.shape)}, shard.path.stat().st_size
    if how == "cut short":
        os.truncate(shard.path, size - 4)
    elif how == "empty":
        shard.path.write_bytes(b"")
    elif how == "text":
        shard.path.write_text("not a tensor in here " * 99)
    elif how == "no key":
        save_file(data, shard.path)
    elif how == "other key":
        save_file(data, shard.path, {"key": "of something else"})
    elif how == "other name":
        save_file({"points": data["latents"]}, shard.path, {"key": shard.key})
    elif how == "other shape":
        save_file({"latents": data["latents"][1:]}, shard.path, {"key": shard.key})
    else:
        save_file({"latents": data["latents"].half()}, shard.path, {"key": shard.key})
    return right


@pytest.mark.parametrize("how", ["cut short", "empty", "text", "no key", "other key", "other name",
                                 "other shape", "other type"])
def test_a_damaged_or_foreign_file_is_made_again(images, how):
    bank = quiet_bank(images)
    right = spoil(bank.shards[0], how)
    assert torch.equal(quiet_bank(images).of_class(0), right)


def test_the_rest_of_a_bank_outlasts_a_damaged_file(images, cache):
    bank = quiet_bank(images)
    spoil(bank.shards[0], "empty")
    kept = files_of(cache)[bank.shards[1].path.name]
    quiet_bank(images)
    assert files_of(cache)[bank.shards[1].path.name] == kept


# When it stops

@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_latent_that_is_no_number_is_named_and_not_stored(images, cache, bad, monkeypatch):
    read = images.images

    def damaged(indices, *args, **kwargs):
        pixels = read(indices, *args, **kwargs)
        pixels[indices % 5 == 2] = bad
        return pixels

    monkeypatch.setattr(images, "images", damaged)
    message = "for 1 of the 5 images of class 'a', the first of them '2'"
    with pytest.raises(InputError, match=message):
        quiet_bank(images)
    assert files_of(cache) == {}


def test_a_stopped_encoding_keeps_whole_classes_alone(images, cache, monkeypatch):
    read = images.images

    def stop(indices, *args, **kwargs):
        if 7 in indices.tolist():
            raise KeyboardInterrupt
        return read(indices, *args, **kwargs)

    monkeypatch.setattr(images, "images", stop)
    with pytest.raises(KeyboardInterrupt):
        quiet_bank(images, batch_size=1, workers=2)
    assert [name[0] for name in files_of(cache)] == ["a"]


def test_a_file_that_cannot_be_read_is_named(folder, cache):
    quiet_bank(FolderImages(folder))
    (folder / "z/5.png").write_bytes(b"\x89PNG, cut off")
    with pytest.raises(InputError, match="z/5.png to be an image"):
        quiet_bank(FolderImages(folder))


def test_few_batches_are_under_way(images, monkeypatch):
    lock, now, most = threading.Lock(), [0], [0]
    read = images.images

    def count(indices, *args, **kwargs):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(.01)
        pixels = read(indices, *args, **kwargs)
        with lock:
            now[0] -= 1
        return pixels

    monkeypatch.setattr(images, "images", count)
    quiet_bank(images, batch_size=1, workers=2)
    assert most[0] <= 2


# Memory

@pytest.mark.parametrize("batches, workers, threads", [(10, 4, 4), (3.5, 4, 3), (1, 4, 1)])
def test_as_many_threads_as_memory_allows(monkeypatch, batches, workers, threads):
    tiny = tiny_backbone()
    need = page.encoding_bytes(tiny, 8)
    monkeypatch.setattr(page, "free_bytes", lambda device: batches * need)
    assert threads_that_fit(tiny, 8, workers) == threads


def test_an_image_that_does_not_fit_is_refused_before_it_is_encoded(images, cache, monkeypatch):
    monkeypatch.setattr(page, "free_bytes", lambda device: 1000.)
    message = "Expected images of 16 pixels to fit into memory, .* 0.0 GB are free"
    with pytest.raises(InputError, match=message):
        quiet_bank(images)
    assert files_of(cache) == {}


def test_memory_is_not_asked_for_where_nothing_is_encoded(images, monkeypatch):
    quiet_bank(images)
    monkeypatch.setattr(page, "free_bytes", lambda device: 0.)
    assert quiet_bank(images).of_class(0).shape == (5, 4, 8, 8)


def test_this_machine_has_memory():
    assert 1e8 < free_bytes(torch.device("cpu"))


def test_half_a_megapixel_at_once():
    assert [usual_batch_size(s) for s in (8, 90, 256, 724, 4096)] == [64, 64, 8, 1, 1]


# Crops

def adm_crop(image, size):
    "The center crop as ADM and DiT print it (guided_diffusion/image_datasets.py)."
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    arr = np.array(image)
    crop_y = (arr.shape[0] - size) // 2
    crop_x = (arr.shape[1] - size) // 2
    return arr[crop_y: crop_y + size, crop_x: crop_x + size]


@pytest.mark.parametrize("shape", [
    (16, 16), (31, 90), (32, 32), (33, 70), (200, 131), (64, 1000), (500, 375), (5, 9),
])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_crop_of_dit_is_adms(shape, channels):
    size = shape[::-1] if channels == 1 else (*shape[::-1], 3)
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert np.array_equal(np.asarray(halve_and_crop(image, 16)), adm_crop(image, 16))


def test_the_crop_follows_the_family():
    tiny = tiny_backbone()
    assert crop_of(tiny) is halve_and_crop
    tiny.transformer = torch.nn.Identity()
    assert crop_of(tiny) is resize_and_crop


def test_a_bank_is_cropped_as_the_family_asks(tmp_path, cache):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 64, 3), dtype=np.uint8)
    (tmp_path / "large/a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "large/a/1.png")
    data, tiny = FolderImages(tmp_path / "large"), tiny_backbone()
    bank = quiet_bank(data, tiny)
    expected = encode(tiny.vae, data.images(size=16, crop=halve_and_crop))
    assert torch.allclose(bank.latents, expected, atol=1e-5)
    tiny.transformer.__class__.__name__ = "SomethingElse"
    try:
        assert not torch.allclose(quiet_bank(data, tiny).latents, expected, atol=1e-2)
    finally:
        tiny.transformer.__class__.__name__ = "DiTTransformer2DModel"
    assert len(files_of(cache)) == 2


# Fingerprints of data

def test_known_fingerprints_are_looked_up(folder, seen):
    first = class_fingerprints(FolderImages(folder))
    assert len(seen) == 9
    assert class_fingerprints(FolderImages(folder)) == first
    assert len(seen) == 9


@pytest.mark.parametrize("change", ["size", "time"])
def test_another_size_or_time_is_read(folder, seen, change):
    class_fingerprints(FolderImages(folder))
    path = folder / "y/1.png"
    if change == "size":
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, (HOUR_AGO, HOUR_AGO))
    else:
        os.utime(path, (HOUR_AGO + 1, HOUR_AGO))
        os.utime(path, (HOUR_AGO, HOUR_AGO + 1))
    seen.clear()
    class_fingerprints(FolderImages(folder))
    assert sorted(seen) == ["y/1.png", "y/4.png", "y/7.png"]


def test_the_same_bytes_have_the_same_fingerprint(folder):
    before = FolderImages(folder).fingerprint()
    os.utime(folder / "y/1.png", (HOUR_AGO, HOUR_AGO + 1))
    assert FolderImages(folder).fingerprint() == before


def test_young_files_are_not_remembered(folder, seen):
    path = folder / "x/0.png"
    os.utime(path)
    class_fingerprints(FolderImages(folder))
    facts = path.stat()
    path.write_bytes(path.read_bytes()[::-1])  # as large as before, in the same tick of the clock
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    seen.clear()
    class_fingerprints(FolderImages(folder))
    assert {name[0] for name in seen} == {"x"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 3}', '{"x": ["other", "stamp"]}'])
def test_a_damaged_table_is_made_again(folder, cache, text):
    before = class_fingerprints(FolderImages(folder))
    [table] = cache.glob("*-hashes.json")
    table.write_text(text)
    assert class_fingerprints(FolderImages(folder)) == before


def test_a_cache_that_cannot_be_written_costs_time_only(folder, tmp_path, monkeypatch):
    before = class_fingerprints(FolderImages(folder))
    (tmp_path / "no folder").write_text("a file")
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "no folder"))
    assert class_fingerprints(FolderImages(folder)) == before


def test_images_in_memory_are_always_read(images, cache):
    before = class_fingerprints(images)
    images.arrays[0] += 1
    after = class_fingerprints(images)
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert not cache.exists()


# Fingerprints of backbones

@pytest.fixture
def saved(tmp_path):
    "A tiny backbone as a folder in diffusers layout, an hour old."
    folder, tiny = tmp_path / "saved", tiny_backbone()
    for part in ("vae", "transformer", "scheduler"):
        getattr(tiny, part).save_pretrained(folder / part)
    (folder / "model_index.json").write_text("{}")
    for path in folder.rglob("*.*"):
        os.utime(path, (HOUR_AGO, HOUR_AGO))
    return str(folder)


def test_a_backbone_is_hashed_once(saved, monkeypatch):
    loaded = load_backbone(saved)
    before = fingerprint_of_files(loaded, saved)
    assert before == loaded.fingerprint() == hash_networks(loaded.vae, loaded.transformer)
    monkeypatch.setattr(backbone_page, "hash_networks", None)
    assert fingerprint_of_files(loaded, saved) == before


def test_a_backbone_with_another_file_is_hashed_again(saved, tmp_path):
    fingerprint_of_files(load_backbone(saved), saved)
    tiny_backbone(seed=1).vae.save_pretrained(tmp_path / "saved/vae")
    loaded = load_backbone(saved)
    assert fingerprint_of_files(loaded, saved) == loaded.fingerprint()


def test_a_backbone_from_the_hub_is_found_where_it_is_kept(saved, monkeypatch):
    import huggingface_hub

    def find(repo, file):
        return f"{saved}/{file}" if repo == "owner/name" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", find)
    loaded = load_backbone(saved)
    assert fingerprint_of_files(loaded, "owner/name") == loaded.fingerprint()
    monkeypatch.setattr(backbone_page, "hash_networks", lambda *models: "counted")
    assert fingerprint_of_files(loaded, "owner/name") != "counted"
    assert fingerprint_of_files(loaded, "owner/another") == "counted"


def test_a_shard_is_no_folder_and_no_other(tmp_path):
    shard = Shard(tmp_path / "a.safetensors", "key", (2, 4, 8, 8))
    shard.write(torch.ones(2, 4, 8, 8))
    assert shard.is_whole()
    assert not replace(shard, key="other").is_whole()
    assert not replace(shard, path=tmp_path).is_whole()
    assert ShardedBank([shard], torch.zeros(2)).latents.shape == (2, 4, 8, 8)
