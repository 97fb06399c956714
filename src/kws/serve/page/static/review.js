// What was heard and awaits review: listen to it, confirm it as a word, or delete it.
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
