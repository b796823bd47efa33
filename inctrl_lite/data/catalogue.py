"""The nine data sets of the paper's evaluation: licence, source, layout and expected number of images.

Nothing was downloaded for this list. Addresses, checksums and counts come from publications, from public code
and from counting, and each count names its source. If an entry and the home page of the data set disagree,
the home page is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inctrl_lite.errors import InctrlError

ONE_VS_ALL, MULTI_CLASS = "one-vs-all", "multi-class"
SEED, TEST_SHARE = (
    42,
    0.25,
)  # the public code's split of normal images, for data sets that have no split of their own


@dataclass(frozen=True)
class Counts:
    """How many images a data set has once it is prepared, over all its categories.

    Attributes:
        train: normal images that support sets are drawn from.
        normal, anomalous: test images; in one-against-all sets each counts once for each category.
        certain: False if a number is from memory, neither read nor counted. A difference is then no proof.
        source: where the numbers come from.
        by_category: (normal, anomalous) test images of each category, if they are known.
    """

    train: int
    normal: int
    anomalous: int
    certain: bool
    source: str
    by_category: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetInfo:
    """One entry of the catalogue.

    Attributes:
        name: its name on the command line.
        title: its name in publications.
        domain: "industrial", "surface", "medical" or "semantic".
        categories: in sorted order; their names are the words of the text prompts, as in the public code.
        licence, citation, home: as far as known. What the home page says is decisive.
        layout: files and folders of the download.
        counts: by protocol; the key is "" for data sets with only one protocol.
        by_hand: how to download it by hand, if there is no direct address.
        url, archive, sha256: direct address, the file's name and its checksum; None if not known.
        note: a known problem of the data set or of its public protocol.
    """

    name: str
    title: str
    domain: str
    categories: tuple[str, ...]
    licence: str
    citation: str
    home: str
    layout: str
    counts: Mapping[str, Counts]
    by_hand: str
    url: str | None = None
    archive: str | None = None
    sha256: str | None = None
    note: str = ""

    @property
    def protocols(self) -> tuple[str, ...]:
        """The ways to make categories from its classes; ("",) if the data set has categories of its own."""
        return tuple(self.counts)


def find_dataset(name: str) -> DatasetInfo:
    """The entry with this name.

    Raises:
        InctrlError: there is no such entry; the message lists all names.
    """
    if name not in CATALOGUE:
        raise InctrlError(f"no data set {name!r} in the catalogue. There are: {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


_SPLIT = f"normals divided 75/25 with seed {SEED}, in sorted order of their names"

_ENTRIES = (
    DatasetInfo(
        name="mvtec",
        title="MVTec AD",
        domain="industrial",
        categories=tuple(
            "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush "
            "transistor wood zipper".split()
        ),
        licence="CC BY-NC-SA 4.0",
        citation=(
            "P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. MVTec AD: A Comprehensive Real-World Dataset "
            "for Unsupervised Anomaly Detection. CVPR 2019."
        ),
        home="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        layout=(
            "CATEGORY/train/good/*.png, CATEGORY/test/{good,DEFECT}/*.png, "
            "CATEGORY/ground_truth/DEFECT/*_mask.png"
        ),
        counts={
            "": Counts(3629, 467, 1258, False, "the test split from memory; its total of 1725 is published")
        },
        by_hand="Ask for the data set on its home page: it gives an address to those who accept the licence.",
        archive="mvtec_anomaly_detection.tar.xz",
        sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
    ),
    DatasetInfo(
        name="visa",
        title="VisA",
        domain="industrial",
        categories=tuple(
            "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 "
            "pipe_fryum".split()
        ),
        licence="CC BY 4.0",
        citation=(
            "Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer. SPot-the-Difference Self-Supervised "
            "Pre-training for Anomaly Detection and Segmentation. ECCV 2022."
        ),
        home="https://github.com/amazon-science/spot-diff",
        layout=(
            "CATEGORY/Data/Images/{Normal,Anomaly}/*.JPG, CATEGORY/Data/Masks/Anomaly/*.png, "
            "split_csv/1cls.csv (object,split,label,image,mask)"
        ),
        counts={
            "": Counts(
                8659,
                962,
                1200,
                True,
                "counted in split_csv/1cls.csv",
                {
                    "candle": (100, 100),
                    "capsules": (60, 100),
                    "cashew": (50, 100),
                    "chewinggum": (50, 100),
                    "fryum": (50, 100),
                    "macaroni1": (100, 100),
                    "macaroni2": (100, 100),
                    "pcb1": (100, 100),
                    "pcb2": (100, 100),
                    "pcb3": (101, 100),
                    "pcb4": (101, 100),
                    "pipe_fryum": (50, 100),
                },
            )
        },
        by_hand="Its home page links the archive.",
        url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
        archive="VisA_20220922.tar",
        sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
        note="The public training script reads no .JPG and so loses all 8659 training normals.",
    ),
    DatasetInfo(
        name="elpv",
        title="ELPV",
        domain="surface",
        categories=("elpv",),
        licence="images CC BY-NC-SA 4.0, code Apache-2.0",
        citation=(
            "S. Deitsch, V. Christlein, S. Berger, C. Buerhop-Lutz, A. Maier, F. Gallwitz, C. Riess. "
            "Automatic Classification of Defective Photovoltaic Module Cells in Electroluminescence Images. "
            "Solar Energy 185, 2019."
        ),
        home="https://github.com/zae-bayern/elpv-dataset",
        layout="labels.csv (file, defect probability, mono or poly; spaces between) and images/*.png",
        counts={
            "": Counts(1131, 377, 715, True, f"counted (313 mono and 402 poly cells are anomalous); {_SPLIT}")
        },
        by_hand="Clone the repository or download it as a zip file: the images are in it.",
        url="https://github.com/zae-bayern/elpv-dataset/archive/411fd729dad19511883306aa85e52f1962cba581.zip",
        archive="elpv-dataset.zip",
        note="Cells with defect probability 1/3 or 2/3 are left out, as in the public code.",
    ),
    DatasetInfo(
        name="sdd",
        title="KolektorSDD",
        domain="surface",
        categories=("SDD",),
        licence="CC BY-NC-SA 4.0 (from memory)",
        citation=(
            "D. Tabernik, S. Sela, J. Skvarc, D. Skocaj. Segmentation-Based Deep-Learning Approach for "
            "Surface-Defect Detection. Journal of Intelligent Manufacturing 31(3), 2020."
        ),
        home="https://www.vicos.si/resources/kolektorsdd/",
        layout="kos01 ... kos50, each with PartN.jpg and PartN_label.bmp",
        counts={
            "": Counts(857, 286, 54, True, f"stated by the paper's author; {_SPLIT}"),
        },
        by_hand="Its home page links the archive with the fine annotations, KolektorSDD.zip.",
        url="https://go.vicos.si/kolektorsdd",
        archive="KolektorSDD.zip",
        sha256="65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc",
        note="Every photograph is cut in three, and thirds of one photograph may fall in both splits.",
    ),
    DatasetInfo(
        name="aitex",
        title="AITEX (AFID)",
        domain="surface",
        categories=("AITEX",),
        licence="unclear, for research (from memory)",
        citation=(
            "J. Silvestre-Blanes, T. Albero-Albero, I. Miralles, R. Perez-Llorens, J. Moreno. A Public "
            "Fabric Database for Defect Detection Methods and Results. Autex Research Journal 19(4), 2019."
        ),
        home="https://www.aitex.es/afid/",
        layout=(
            "NODefect_images/ROLL/*.png, Defect_images/NUMBER_CODE_FABRIC.png and "
            "Mask_images/NUMBER_CODE_FABRIC_mask*.png, 4096 x 256 pixels"
        ),
        counts={
            "": Counts(
                1692,
                564,
                185,
                True,
                f"test tiles counted in a public list; training tiles derived from 141 images x 16; {_SPLIT}",
            )
        },
        by_hand=(
            "Its home page has three archives, Defect_images.7z, NODefect_images.7z and Mask_images.7z: "
            "unpack them with a 7z program, side by side. (Kaggle has the same as one zip file, in "
            "nexuswho's aitex-fabric-image-database.)"
        ),
        note="Strips are cut into 256-pixel tiles, and tiles of one strip may fall in both splits.",
    ),
    DatasetInfo(
        name="brainmri",
        title="Brain MRI Images for Brain Tumor Detection",
        domain="medical",
        categories=("brainmri",),
        licence="not stated (from memory)",
        citation="N. Chakrabarty. Brain MRI Images for Brain Tumor Detection. Kaggle, 2019.",
        home="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
        layout="no/*.jpg (normal) and yes/*.jpg (tumor)",
        counts={
            "": Counts(73, 25, 155, False, f"derived from 98 and 155 images, which are from memory; {_SPLIT}")
        },
        by_hand="Sign in to Kaggle and download the data set as a zip file.",
        note="Collected from the web: the same slice may occur more than once, in both splits.",
    ),
    DatasetInfo(
        name="headct",
        title="Head CT - hemorrhage",
        domain="medical",
        categories=("headct",),
        licence="see its Kaggle page",
        citation="F. Kitamura. Head CT - hemorrhage. Kaggle, 2018.",
        home="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
        layout="labels.csv (id, hemorrhage) and head_ct/head_ct/NNN.png",
        counts={"": Counts(75, 25, 100, True, f"stated by the paper's author; {_SPLIT}")},
        by_hand="Sign in to Kaggle and download the data set as a zip file.",
    ),
    DatasetInfo(
        name="mnist",
        title="MNIST",
        domain="semantic",
        categories=tuple("0123456789"),
        licence="CC BY-SA 3.0 (from memory)",
        citation=(
            "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner. Gradient-Based Learning Applied to Document "
            "Recognition. Proceedings of the IEEE 86(11), 1998."
        ),
        home="http://yann.lecun.com/exdb/mnist/",
        layout="{train,t10k}-images-idx3-ubyte.gz and {train,t10k}-labels-idx1-ubyte.gz",
        counts={
            ONE_VS_ALL: Counts(
                60_000, 10_000, 90_000, True, "derived: each test image is normal once, anomalous nine times"
            ),
            MULTI_CLASS: Counts(
                29_492, 4_926, 5_074, False, "class sizes and the protocol (even or odd) from memory"
            ),
        },
        by_hand="Any mirror of the four files will do.",
        note="The public code has no script for it. Multi-class: even digits are normal, odd ones anomalous.",
    ),
    DatasetInfo(
        name="cifar10",
        title="CIFAR-10",
        domain="semantic",
        categories=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
        licence="none stated (from memory)",
        citation="A. Krizhevsky. Learning Multiple Layers of Features from Tiny Images. Toronto, 2009.",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        layout="cifar-10-batches-py/{data_batch_1 ... data_batch_5,test_batch}",
        counts={
            ONE_VS_ALL: Counts(
                50_000, 10_000, 90_000, True, "derived: each test image is normal once, anomalous nine times"
            ),
            MULTI_CLASS: Counts(
                30_000, 6_000, 4_000, False, "6000 images a class; the protocol (animals or not) from memory"
            ),
        },
        by_hand="Its home page links the python version, cifar-10-python.tar.gz.",
        note="The public code has no script for it. Multi-class: animals are normal, vehicles anomalous.",
    ),
)

CATALOGUE: dict[str, DatasetInfo] = {info.name: info for info in _ENTRIES}
