from tests.fidelity.page import PAGE, page

print(page(PAGE.read_text("utf-8") if PAGE.exists() else ""), end="")
