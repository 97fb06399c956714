// Tells the server what a person says of a sound that it keeps: its word, or that it is wrong; null deletes it.
export async function review(name, said, failed) {
  try {
    const answer = await fetch(`heard/${name}`, {
      method: said ? "POST" : "DELETE", headers: { "content-type": "application/json" }, body: said && JSON.stringify(said),
    });
    if (!answer.ok) throw new Error((await answer.json()).error);
    return true;
  } catch (error) {
    failed(`Not done: ${error.message}.`);
    return false;
  }
}
