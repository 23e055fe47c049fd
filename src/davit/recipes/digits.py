"""Recipe `digits`: 1,437 built-in handwritten digits, about a minute on two CPU cores, test top-1 over 0.98."""

from davit.data.detection_transforms import DetectionAugmentation
from davit.data.photometric import PhotometricDistortion
from davit.data.segmentation_transforms import SegmentationAugmentation
from davit.data.transforms import Augmentation
from davit.models.clip_config import ImageTextHead, TextConfig
from davit.models.config import ChannelScale
from davit.models.detector_config import DetectorHead
from davit.models.segmenter_config import UPerNetHead
from davit.models.variants import variant as architecture
from davit.recipes.about import About
from davit.recipes.start import Start
from davit.tasks.classification import ClassificationConfig
from davit.tasks.contrastive import ContrastiveConfig
from davit.tasks.detection import DetectionConfig
from davit.tasks.segmentation import SegmentationConfig
from davit.train.optimizer import OptimizerConfig
from davit.train.recipe import DataRecipe, ModelRecipe, Recipe, RuntimeRecipe
from davit.train.schedule import ScheduleConfig

BRIGHT = 0.12  # of the scenes: fresh weights learn what digits are before they learn that these may be dark, too
LARGE = 192  # scenes are 128 pixels wide; enlarged, boxes are found more exactly than twice the pictures would teach


def build(name: str, start: Start) -> Recipe:
    """Ours, not the paper's: sized so that one can wait for them on two CPU cores."""
    kinds = {
        "digits": _digits,
        "digits.detection": _detection,
        "digits.retinanet": _retinanet,
        "digits.segmentation": _segmentation,
        "digits.contrastive": _contrastive,
    }
    return kinds[name](name, start)


def _digits(name: str, start: Start) -> Recipe:
    variant = start.variant or "davit_pico"
    return Recipe(
        name=name,
        model=ModelRecipe(
            variant=variant,
            backbone=architecture(variant).override(in_channels=1, drop_path=0.05, window=3),
            init=start.init or "",
        ),
        task=ClassificationConfig(label_smoothing=0.1, mixup=0.0, cutmix=0.0),
        data=DataRecipe(
            source="digits",
            image_size=24,
            channels=1,
            crop=1.0,
            batch_size=start.batch_size or 64,
            workers=0,
            augmentation=Augmentation(
                crop_scale=(1.0, 1.0), flip=0.0, rotate=12.0, translate=0.08, zoom=0.12, rand_augment="", erasing=0.0
            ),
        ),
        optimizer=OptimizerConfig(kind="muon", learning_rate=4e-3, matrix_rate=3),
        schedule=ScheduleConfig(epochs=8, warmup_epochs=1, cooldown_epochs=0),
        runtime=RuntimeRecipe(ema=0.98),
    )


def _detection(name: str, start: Start) -> Recipe:
    head = DetectorHead(
        kind="mask_rcnn", channels=64, hidden=512, anchor_scale=6, class_agnostic_boxes=True, region_samples=32,
        training_candidates=300, candidates=200, proposals=100, detections=20,
    )  # fmt: skip
    optimizer = OptimizerConfig(kind="muon", matrix_precision="auto", learning_rate=2e-3, matrix_rate=2)
    # Fuller scenes teach more for the same computation, and windows of 6 divide 192 pixels.
    return _detector(name, start, head, DetectionConfig(), optimizer, scenes=6600, fewest_digits=7, window=6)


def _retinanet(name: str, start: Start) -> Recipe:
    head = DetectorHead(
        kind="retinanet", channels=64, anchor_scale=3, kept_variance=True, candidates=200, detections=20
    )
    optimizer = OptimizerConfig(kind="muon", matrix_precision="auto", learning_rate=2e-3, matrix_rate=2)
    return _detector(name, start, head, DetectionConfig(masks=False), optimizer, scenes=6400, fewest_digits=6)


def _detector(
    name: str,
    start: Start,
    head: DetectorHead,
    task: DetectionConfig,
    optimizer: OptimizerConfig,
    *,
    scenes: int,
    fewest_digits: int = 1,
    window: int = 7,
) -> Recipe:
    return _dense(
        name,
        start,
        side=LARGE,
        scenes=scenes,
        head=head,
        task=task,
        augmentation=DetectionAugmentation(
            flip=0.0, short_sides=(LARGE,), longest=LARGE, crop_probability=0.0, crop_short_sides=(LARGE,)
        ),
        optimizer=optimizer,
        fewest_digits=fewest_digits,
        window=window,
    )


def _segmentation(name: str, start: Start) -> Recipe:
    # Fresh weights learn more from small pictures and small steps, and from time spent on the stages that read, not on
    # a wide last one; only edges need larger pictures, at the end, and digits of many sizes, so that a scene may be
    # enlarged further still when it is judged. Given ones bring their shape along. Bent digits keep all of them from
    # knowing the training digits by heart.
    given = bool(start.init)
    side, crop, batch_size, rate = (LARGE, LARGE, 8, 2e-3) if given else (176, 160, 4, 2.5e-3)
    own = given or start.variant
    return _dense(
        name,
        start,
        side=side,
        scenes=9000 if given else 13300,
        batch_size=batch_size,
        head=UPerNetHead(channels=64, auxiliary_channels=32, pool_sizes=(2, 4), dropout=0.0),
        task=SegmentationConfig(prior_samples=64),
        augmentation=SegmentationAugmentation(
            flip=0.0,
            scale=(1.0, 1.0) if given else (0.85, 1.1),
            short=side,
            longest=side,
            crop=crop,
            most_of_one_class=1.0,
            distortion=PhotometricDistortion(brightness=0.0, contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=0.0),
        ),
        optimizer=OptimizerConfig(
            kind="muon", matrix_precision="auto", learning_rate=rate, matrix_rate=4, betas=(0.9, 0.98)
        ),
        first_size=0 if given else 141,  # crops of 128
        first_share=0.75,
        fewest_digits=12,
        most_digits=16,
        sparse_share=0.15,  # where all scenes are crowded, a model may take the ground of an empty one for a digit
        bend=1.0,
        stroke=30.0,
        window=4,
        merge_kernel=3,
        channel_scale="tokens",  # logits that do not grow with the number of positions
        **({} if own else {"widths": (32, 64, 128, 128), "depths": (1, 1, 3, 1)}),
    )


def _contrastive(name: str, start: Start) -> Recipe:
    variant = start.variant or "davit_pico"
    return Recipe(
        name=name,
        model=ModelRecipe(
            variant=variant,
            backbone=architecture(variant).override(drop_path=0.0, window=4),
            init=start.init or "",
            head=ImageTextHead(
                embedding=128, text=TextConfig(context=40, width=64, heads=2, layers=3), template="a {}"
            ),
        ),
        task=ContrastiveConfig(),
        data=DataRecipe(
            source="scenes",
            image_size=64,
            first_size=0 if start.init else 32,
            first_share=0.0 if start.init else 0.27,
            crop=1.0,
            scenes=94000,
            bright_share=0.0 if start.init else BRIGHT,
            interpolation="bilinear",
            batch_size=start.batch_size or 32,
            workers=0,
            augmentation=Augmentation(crop_scale=(1.0, 1.0), flip=0.0, rand_augment="", erasing=0.0),
        ),
        optimizer=OptimizerConfig(
            kind="muon", matrix_precision="auto", learning_rate=2e-3, matrix_rate=2, betas=(0.9, 0.98)
        ),
        schedule=ScheduleConfig(epochs=1, warmup_epochs=0.05, cooldown_epochs=0),
        runtime=RuntimeRecipe(ema=0.99),
    )


def _dense(
    name: str,
    start: Start,
    *,
    side: int,
    scenes: int,
    head: DetectorHead | UPerNetHead,
    task: DetectionConfig | SegmentationConfig,
    augmentation: DetectionAugmentation | SegmentationAugmentation,
    optimizer: OptimizerConfig,
    first_size: int = 0,
    first_share: float = 0.0,
    fewest_digits: int = 1,
    most_digits: int = 0,
    sparse_share: float = 0.0,
    bend: float = 0.0,
    stroke: float = 0.0,
    batch_size: int = 4,
    window: int = 7,
    merge_kernel: int = 2,
    channel_scale: ChannelScale = "channels",
    **shape: tuple[int, int, int, int],
) -> Recipe:
    variant = start.variant or "davit_pico"
    return Recipe(
        name=name,
        model=ModelRecipe(
            variant=variant,
            backbone=architecture(variant).override(
                drop_path=0.0, window=window, merge_kernel=merge_kernel, channel_scale=channel_scale, **shape
            ),
            init=start.init or "",
            head=head,
        ),
        task=task,
        data=DataRecipe(
            source="scenes",
            image_size=side,
            first_size=first_size,
            first_share=first_share if first_size else 0.0,
            longest=side,
            scenes=scenes,
            bright_share=0.0 if start.init else BRIGHT,
            fewest_digits=fewest_digits,
            most_digits=most_digits,
            sparse_share=sparse_share,
            bend=bend,
            stroke=stroke,
            interpolation="bilinear",
            batch_size=start.batch_size or batch_size,  # small: many steps learn more in ten minutes than large ones
            workers=0,
            augmentation=augmentation,
        ),
        optimizer=optimizer,
        schedule=ScheduleConfig(epochs=1, warmup_epochs=0.1, cooldown_epochs=0),
        runtime=RuntimeRecipe(ema=0.995),
    )


def about(name: str) -> About:
    """What a recipe of digits is."""
    scenes = "the same digits in scenes of one to eight, "
    summary = {
        "digits": "the built-in handwritten digits, about a minute",
        "digits.detection": scenes + "Mask R-CNN, ten to twenty minutes",
        "digits.retinanet": scenes + "RetinaNet, ten to fifteen minutes",
        "digits.segmentation": scenes + "UPerNet, ten to twenty minutes",
        "digits.contrastive": "scenes of one to four digits with captions, UniCL, ten to twenty minutes",
    }
    expected = {
        "digits": "top-1 over 0.98 on 360 test digits (docs/results.md)",
        "digits.detection": "box AP 0.75, mask AP 0.76 from fresh weights (docs/results.md)",
        "digits.retinanet": "box AP 0.73 from fresh weights, 0.78 from the backbone of a detector (docs/results.md)",
        "digits.segmentation": "mean IoU 0.90 from fresh weights (docs/results.md)",
        "digits.contrastive": "image to text R@1 of 0.81 on 200 unseen scenes (docs/results.md)",
    }
    return About(
        summary=summary[name],
        source="no paper: scikit-learn's digits, a fixed split",
        ours="everything",
        command=f"davit train {name}",
        expected=expected[name],
        classes=10,
        images=1437,
        measured="54 s on two CPU cores with AVX2 (docs/results.md)" if name == "digits" else "docs/results.md",
    )
