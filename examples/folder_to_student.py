from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from crossdistill import distill

for number, (picture, digit) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
    file = Path(f"digits/{digit}/{number}.png")  # a folder for each class
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.reshape(8, 8).astype("uint8") * 15).save(file)

student = distill("digits", epochs=5, out="runs/digits")
print(student.predict(["digits/7/7.png", "digits/8/8.png"]))
