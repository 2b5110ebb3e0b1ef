"""Latents that are shifted, and autoencoders that replace a backbone's own."""
import json

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DModel

from manifoldgd.backbones.backbone import LatentModel, tiny_backbone, tiny_vae
from manifoldgd.backbones.families import open_backbone
from manifoldgd.backbones.latents import decode, encode
from manifoldgd.config.commands import ReportConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.core import to_pil
from manifoldgd.distillation.distill import distill
from manifoldgd.errors import InputError
from manifoldgd.sampling.pipeline import ManifoldGDPipeline
from manifoldgd.sharing.report import write_reports


def small_vae(levels=2, **settings):
    "An `AutoencoderTiny` of random weights."
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
        **settings,
    )


def other_vae(**settings):
    "An `AutoencoderKL` of other random weights."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        vae = tiny_vae(3).eval()
    vae.register_to_config(**settings)
    return vae


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A backbone, and autoencoders that fit it or do not."
    folder = tmp_path_factory.mktemp("lab")
    tiny = tiny_backbone()
    pipe = ManifoldGDPipeline(tiny.vae, tiny.transformer, tiny.scheduler, tiny.id2label)
    pipe.save_pretrained(folder / "backbone")
    other_vae().save_pretrained(folder / "kl")
    other_vae(shift_factor=.1159).save_pretrained(folder / "shifted")
    small_vae().save_pretrained(folder / "tiny")
    small_vae(3).save_pretrained(folder / "deep")
    small_vae(latent_channels=16).save_pretrained(folder / "wide")
    UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
                ).save_pretrained(folder / "unet")
    (folder / "empty").mkdir()
    return folder


def images(n=3):
    "Random images."
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_shift_and_scale_both_ways():
    "z = s (mean - b), and back: by the parts of the network, with numbers written here."
    vae = other_vae(shift_factor=.1159, scaling_factor=.3611)
    with torch.no_grad():
        mean = vae.quant_conv(vae.encoder(images()))[:, :4]
        latents = .3611 * (mean - .1159)
        pixels = vae.decoder(vae.post_quant_conv(latents / .3611 + .1159)).clamp(-1, 1)
    torch.testing.assert_close(encode(vae, images()), latents)
    torch.testing.assert_close(decode(vae, latents), pixels)


def test_a_tiny_autoencoder_by_its_parts():
    "Its encoder and decoder alone: nothing is scaled."
    vae = small_vae()
    with torch.no_grad():
        latents = vae.encoder(images())
        pixels = vae.decoder(latents).clamp(-1, 1)
    torch.testing.assert_close(encode(vae, images()), latents)
    torch.testing.assert_close(decode(vae, latents), pixels)


@pytest.mark.parametrize("kind", ["kl", "shifted", "tiny"])
def test_another_autoencoder_is_part_of_the_backbone(lab, kind):
    own = open_backbone(str(lab / "backbone"))
    other = open_backbone(str(lab / "backbone"), vae=str(lab / kind))
    assert other.fingerprint() != own.fingerprint()
    assert encode(other.vae, images()).shape[1:] == own.latent_shape == other.latent_shape
    assert (other.image_size, other.channels) == (own.image_size, own.channels)
    assert "its VAE: unknown" in other.licence


def test_the_autoencoder_of_another_backbone(lab):
    "A folder of a backbone stands for its autoencoder."
    own = open_backbone(str(lab / "backbone"))
    other = open_backbone(str(lab / "backbone"), vae=str(lab / "backbone"))
    assert other.fingerprint() == own.fingerprint()


@pytest.mark.parametrize("spec, words", [
    ("deep", "but .*/deep makes latents of 4 channels, 4 times smaller than images of 3"),
    ("wide", "but .*/wide makes latents of 16 channels, 2 times smaller"),
    ("unet", "one of AutoencoderKL, AutoencoderTiny, VQModel, but got UNet2DModel"),
    ("empty", "could not be loaded"),
    ("nowhere", "folder in diffusers layout or a hub id"),
])
def test_what_does_not_fit_is_one_line(lab, spec, words):
    with pytest.raises(InputError, match=words) as error:
        open_backbone(str(lab / "backbone"), vae=str(lab / spec))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:At step", "ignore:The finished latents")
def test_a_run_with_another_autoencoder(lab, tmp_path, monkeypatch):
    "The manifest names it, a report opens it again, and a run cannot change it halfway."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    for name in ("0", "1"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i, image in enumerate(to_pil(images(14))):
            image.save(tmp_path / "photos" / name / f"{i:02}.png")
    settings = {
        "data": str(tmp_path / "photos"),
        "backbone": str(lab / "backbone"),
        "ipc": 2,
        "num_inference_steps": 4,
        "device": "cpu",
        "out": str(tmp_path / "run"),
    }
    run = distill(DistillConfig(vae=str(lab / "tiny"), **settings), progress=False)
    manifest = json.loads((run / "manifest.json").read_text())
    opened = open_backbone(str(lab / "backbone"), vae=str(lab / "tiny"))
    assert manifest["config"]["vae"] == str(lab / "tiny")
    assert manifest["backbone_fingerprint"] == opened.fingerprint()
    assert manifest["backbone_licence"] == opened.licence
    with pytest.raises(InputError, match="backbone_fingerprint"):
        distill(DistillConfig(**settings), progress=False)
    write_reports(ReportConfig(runs=(str(run),)), progress=False)
    page = (run / "report.html").read_text()
    assert "changed since the run was made" not in page
    assert "Autoencoder: " in page


def test_every_backbone_says_its_licence():
    tiny = tiny_backbone()
    assert tiny.licence.startswith("unknown")
    tiny.name = "facebook/DiT-XL-2-256"
    assert tiny.licence.startswith("DiT-XL/2 256: CC BY-NC 4.0")
    assert isinstance(tiny, LatentModel)
